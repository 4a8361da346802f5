"""A workdir belongs to one config, and to one run at a time. Imports no JAX."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm.data.files import disk_error, make_folder, reachable
from jaxlm.paths import is_local
from jaxlm.report.events import EVENTS, read_events
from jaxlm.report.missing_run import CONFIG_FILE
from jaxlm.runconfig import RunConfig, load_config, restart_differences, save_config
from jaxlm.types import UserError

CHECKPOINTS = "checkpoints"
FROZEN = "frozen"
"""The weights that a run does not train, where there are any; in the form of checkpoint 0."""
LOCK_FILE = "run.lock"
PARTIAL = f"*.{'[0-9a-f]' * 8}.partial"
"""A file of a run before it gets its name; see `data.files.write_atomic`."""


@contextlib.contextmanager
def claim(workdir: Any, cfg: RunConfig) -> Iterator[bool]:
    """Holds a workdir for a run of this config, made if need be; yields whether it already holds this run.

    Errors: UserError when it holds something else, another config, or a run that is going on.
    """
    check_kind(workdir)
    make_folder(workdir)
    with _locked(workdir):
        for partial in reachable(workdir).glob(PARTIAL):  # of a process that was killed while it wrote
            partial.unlink(missing_ok=True)
        yield _open(workdir, cfg)


def check_kind(workdir: Any) -> None:
    """Errors: UserError for a folder that holds something else than a run, or a file."""
    folder = reachable(workdir)
    if not folder.exists() or (folder / CONFIG_FILE).exists():
        return
    if not folder.is_dir():
        raise UserError(f"--workdir={workdir} is a file: a run needs a folder. Choose another path.")
    # A run that was killed while it began leaves no more than these.
    others = [
        path.name
        for path in folder.iterdir()
        if path.name != LOCK_FILE and not (path.name.startswith(CONFIG_FILE) and path.match(PARTIAL))
    ]
    if others:
        raise UserError(
            f"--workdir={workdir} is not empty ({min(others)} is in it) and holds no run ({CONFIG_FILE} is "
            "missing). Choose an empty one."
        )


def _open(workdir: Any, cfg: RunConfig) -> bool:
    saved = reachable(workdir) / CONFIG_FILE
    if not saved.exists():
        save_config(saved, cfg)
        return False
    if has_steps(workdir):  # else refused for its data, say: the corrected command is welcome
        check_config(workdir, cfg)
    save_config(saved, cfg)
    return True


def check_config(workdir: Any, cfg: RunConfig) -> None:
    """Errors: UserError when the run in a workdir is another one than that of this config."""
    saved = reachable(workdir) / CONFIG_FILE
    differences = restart_differences(load_config(saved), cfg)
    if differences:
        key, old, new = differences[0][:3]
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise UserError(
            f"--workdir={workdir} belongs to another config: {key} was {old!r}, now {new!r}{more}. Choose another "
            f"--workdir, or set it back (`jaxlm config --config=... --diff={saved}` lists what differs)."
        )


def has_steps(workdir: Any) -> bool:
    """Whether anything was trained here: a checkpoint (even a damaged or unfinished one), or a step in the log."""
    folder = reachable(workdir)
    checkpoints, log = folder / CHECKPOINTS, folder / EVENTS
    if checkpoints.exists() and any(checkpoints.iterdir()):
        return True
    return log.exists() and any(event.get("event") == "step" for event in read_events(log))


@contextlib.contextmanager
def _locked(workdir: Any) -> Iterator[None]:
    """Keeps other runs of this machine out; the lock of a process that was killed is free at once.

    Object stores have no locks, and some network file systems none that work: there nothing is kept out.
    """
    if not is_local(workdir):
        yield
        return
    import fcntl

    path = os.path.join(os.fspath(workdir), LOCK_FILE)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise disk_error(path, error) or UserError(f"{path} cannot be opened: {error.strerror}.") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                raise UserError(
                    f"--workdir={workdir} is in use by {holder}: two runs would overwrite each other. Wait for "
                    "it, stop it, or choose another --workdir."
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its name is missing
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


class Holder(NamedTuple):
    """Who may be using a workdir."""

    name: str
    is_certain: bool
    """False where only its machine knows whether it still runs."""


def find_holder(workdir: Any) -> Holder | None:
    """Who holds the lock of a workdir; None: nobody. Only looks: a run that begins meanwhile is not kept out."""
    path = os.path.join(os.fspath(workdir), LOCK_FILE)
    if not is_local(workdir) or not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        name = file.read(200).decode(errors="replace").strip()
    try:
        with open("/proc/locks") as file:
            locked = {line.split()[-3].rpartition(":")[2] for line in file if " FLOCK " in line}
    except OSError:  # not Linux
        locked = set()
    if str(os.stat(path).st_ino) in locked:
        return Holder(name or "another process", True)
    # A run that was killed leaves its name, and no lock; of another machine only the name can be seen here.
    elsewhere = name and not name.endswith(f" on {socket.gethostname()}")
    return Holder(name, False) if elsewhere else None
