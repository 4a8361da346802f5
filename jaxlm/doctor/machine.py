"""Checks of this machine: versions, devices, memory, disk, and whether files can be written."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
import uuid
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from etils import epath

from jaxlm.data.files import disk_error, reachable
from jaxlm.doctor.check import Doubt, size
from jaxlm.parallel import distributed
from jaxlm.paths import is_local
from jaxlm.plan.memory import predict
from jaxlm.runconfig import RunConfig, resolve_mesh
from jaxlm.types import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
PYTHON = (3, 11)
_BOUND = re.compile(r"(>=|<=|<|==)\s*([\d.]+)")


def versions() -> str:
    """Versions of what a run depends on, against the bounds that jaxlm and jax state for their packages."""
    if sys.version_info < PYTHON:
        raise UserError(
            f"python {_dotted(sys.version_info[:3])} is older than {_dotted(PYTHON)}: upgrade it."
        )
    found = {name: _installed(name) for name in PACKAGES}
    wrong = []
    for of in ("jaxlm", "jax"):
        for name, bounds in stated_bounds(of).items():
            have = found.get(name) or _installed(name)
            if have is None:
                wrong.append(f"{name} is missing, which {of} needs")
            elif bad := next((bound for bound in bounds if not holds(have, *bound)), None):
                wrong.append(f"{name} {have} is installed, and {of} needs {bad[0]}{bad[1]}")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}. Install jaxlm once more: pip install -U jaxlm.")
    names = [f"python {_dotted(sys.version_info[:3])}", *(f"{name} {have}" for name, have in found.items())]
    if _installed("jaxlm") is None:
        raise Doubt(
            f"{', '.join(names)}; jaxlm is not installed as a package (pip install -e .), so that the versions it "
            "needs are not known here."
        )
    return ", ".join(names)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def stated_bounds(package: str) -> dict[str, list[tuple[str, str]]]:
    """Package -> [(`>=`, `0.12`), ...] of what an installed package needs, extras and other systems left out."""
    found = {}
    with contextlib.suppress(PackageNotFoundError):
        for line in requires(package) or []:
            needed, _, marker = line.partition(";")
            name = re.match(r"[\w.-]+", needed)
            if name is not None and "extra" not in marker and "python_version" not in marker:
                found[name.group().replace("_", "-").lower()] = _BOUND.findall(needed)
    return found


def holds(have: str, relation: str, bound: str) -> bool:
    """Whether a version keeps a bound; of versions only the numbers count (0.11.1rc1 is 0.11.1)."""
    a, b = _numbers(have), _numbers(bound)
    length = max(len(a), len(b))
    a, b = a + [0] * (length - len(a)), b + [0] * (length - len(b))
    return {">=": a >= b, "<=": a <= b, "<": a < b, "==": a == b}[relation]


def _numbers(text: str) -> list[int]:
    match = re.match(r"\d+(\.\d+)*", text)
    return [int(part) for part in match.group().split(".")] if match else []


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


class Devices(NamedTuple):
    """What JAX found."""

    platform: str
    kind: str
    num_local: int
    num_all: int
    num_processes: int

    @property
    def words(self) -> str:
        processes = f", in {self.num_processes} processes" if self.num_processes > 1 else ""
        return f"{self.platform}, {self.num_local} x {self.kind} here, {self.num_all} in all{processes}"


def find_devices() -> Devices:
    """Opens the devices; with several processes, waits for the others to do so."""
    import jax

    local = jax.local_devices()
    return Devices(
        local[0].platform, local[0].device_kind, len(local), jax.device_count(), jax.process_count()
    )


def check_platform(devices: Devices) -> str:
    """Whether JAX uses the accelerators that the machine has."""
    chips = distributed.tpu_chips()
    idle = "a TPU" if chips else "a GPU" if os.path.exists("/dev/nvidia0") else None
    if devices.platform == "cpu" and idle and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        extra = "tpu" if chips else "cuda"
        raise Doubt(
            f"{devices.words}, but this machine seems to have {idle}: pip install 'jaxlm[{extra}]', or set "
            "JAX_PLATFORMS=cpu to say that it is meant."
        )
    return devices.words


def check_mesh(cfg: RunConfig, devices: Devices) -> str:
    """The mesh, the batch and the widths of the config against the devices there are."""
    sizes = resolve_mesh(cfg, devices.num_all)
    mesh = " x ".join(f"{axis} {count}" for axis, count in sizes.items())
    return f"{mesh} on {devices.num_all} device(s), {cfg.data.global_batch_size} sequences a step"


def state_bytes(cfg: RunConfig, vocab_size: int) -> int:
    """Parameters and optimizer state of all devices together: what a checkpoint holds."""
    return predict(cfg, dict.fromkeys(cfg.mesh.sizes, 1), 1, vocab_size).state


def check_memory(cfg: RunConfig, devices: Devices, vocab_size: int) -> str:
    """Free memory of the host against what the run takes of it: on CPUs all, else a copy of what is being saved."""
    import psutil

    sizes = resolve_mesh(cfg, devices.num_all)
    one = predict(cfg, sizes, devices.num_all, vocab_size, platform=devices.platform)
    on_cpu = devices.platform == "cpu"
    needed = (one.total if on_cpu else one.state) * devices.num_local
    what = "the training step" if on_cpu else "the copy of the state that is being saved"
    memory = psutil.virtual_memory()
    words = f"{size(memory.available)} free of {size(memory.total)}; {what} takes about {size(needed)}"
    if needed > memory.total:
        raise UserError(f"{words}: a smaller model or batch, or more hosts, would fit.")
    if needed > memory.available:
        raise Doubt(f"{words}: end what else uses the memory, or the run may be killed.")
    return words


def check_disk(folder: str | os.PathLike, step_bytes: int, num_more: int, num_kept: int) -> str | None:
    """Free disk against the checkpoints that are still to come.

    Args:
      num_more: checkpoints that will be there at once, beyond those that are.
      num_kept: of them all, for the words.
    """
    if not is_local(folder):
        return None
    free = shutil.disk_usage(existing(folder)).free
    words = (
        f"{size(free)} free at {folder}; a checkpoint takes about {size(step_bytes)}, {num_kept} are kept, and one "
        "more while it is written"
    )
    if free < step_bytes:
        raise UserError(
            f"{words}: not even the next one would fit. Free some space, or use another --workdir."
        )
    if free < num_more * step_bytes:
        raise Doubt(f"{words}: {num_more} more are to come. Free some space, or lower checkpoint.keep_last.")
    return words


def existing(folder: str | os.PathLike) -> epath.Path:
    """The folder, or the nearest one above it that is there: a run makes those below."""
    place = epath.Path(os.path.abspath(folder)) if is_local(folder) else reachable(folder)
    while is_local(folder) and not place.exists():
        place = place.parent
    return place


def check_writing(folder: str | os.PathLike) -> str:
    """Writes a small file and syncs it, renames it, reads it back and deletes it."""
    place, began = existing(folder), time.monotonic()
    if place.exists() and not place.is_dir():
        raise UserError(f"{place} is a file, and has to be a folder: choose another path.")
    name, content = f".jaxlm-doctor-{uuid.uuid4().hex[:8]}", os.urandom(1024)
    first, last = place / f"{name}.partial", place / name
    try:
        _write_synced(first, content)
        first.rename(last)
        if last.read_bytes() != content:
            raise UserError(
                f"{place}: a file that was just written reads back as another one: do not use it."
            )
        last.unlink()
    except OSError as error:
        reason = UserError(
            f"{place} cannot be written ({error.strerror or error}): allow it, or choose another."
        )
        raise disk_error(place, error) or reason from None
    finally:
        for path in (first, last):
            with contextlib.suppress(Exception):  # the reason why it is still there is on its way already
                path.unlink(missing_ok=True)
    milliseconds = 1000 * (time.monotonic() - began)
    return f"{place}: written, renamed, read back and deleted in {milliseconds:.0f} ms"


def _write_synced(path: epath.Path, content: bytes) -> None:
    if not is_local(path):
        path.write_bytes(content)
        return
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
