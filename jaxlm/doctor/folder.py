"""Checks of a workdir: whose it is, the health of its checkpoints and of its event log."""

from __future__ import annotations

from typing import NamedTuple

from etils import epath

from jaxlm import checkpoint_integrity as integrity
from jaxlm import processes
from jaxlm.checkpoint_integrity import DamagedCheckpoint
from jaxlm.checkpoint_meta import Meta
from jaxlm.data.files import reachable
from jaxlm.doctor.check import Doubt, size
from jaxlm.report.events import EVENTS, read_events
from jaxlm.runconfig import RunConfig, load_config
from jaxlm.types import UserError
from jaxlm.workdir import CHECKPOINTS, CONFIG_FILE, check_config, check_kind, find_holder, has_steps


def check_folder(workdir: str) -> str:
    """Whether it is a place for a run, and what is there."""
    folder = reachable(workdir)
    check_kind(workdir)
    if not folder.exists():
        return f"{workdir} will be made"
    return f"{workdir} holds {'a run' if (folder / CONFIG_FILE).exists() else 'nothing yet'}"


def check_lock(workdir: str) -> str:
    """Whether another run is using the workdir; the lock is only looked at."""
    holder = find_holder(workdir)
    if holder is None:
        return "no other run is using the workdir"
    if not holder.is_certain:
        raise Doubt(
            f"{holder.name} was using the workdir, and whether it still does cannot be seen from here: look there."
        )
    raise UserError(
        f"the workdir is in use by {holder.name}: two runs would overwrite each other. Wait for it, stop it, or "
        "choose another --workdir."
    )


def check_run_config(workdir: str, cfg: RunConfig | None) -> str | None:
    """The config of the run in the workdir against the one that is to be trained."""
    saved = reachable(workdir) / CONFIG_FILE
    if not saved.exists():
        return None
    if cfg is None:
        load_config(saved)
        return f"{saved} can be read"
    if not has_steps(workdir):
        return "nothing was trained here yet: any config may begin"
    check_config(workdir, cfg)
    return "the run in the workdir is the one of this config"


class Health(NamedTuple):
    """The checkpoints of a run."""

    metas: dict[int, Meta]
    """Of the good steps, ascending."""
    damages: dict[int, str]
    """Of the others, what is wrong."""
    leftovers: list[str]
    """Names of saves that were interrupted, and of steps that were set aside."""
    last_bytes: int
    """Of the latest good step."""


def examine_checkpoints(workdir: str) -> Health:
    """Verifies the seals of all steps: of the latest every byte, of the others names and sizes.

    Several processes share the reading of the latest.
    """
    directory = integrity.absolute(epath.Path(workdir) / CHECKPOINTS)
    steps = integrity.list_steps(directory)
    metas, damages = {}, {}
    for step in steps:
        folder = directory / str(step)
        try:
            integrity.verify(
                folder, checksums=step == max(steps), part=processes.index(), num_parts=processes.count()
            )
            metas[step] = integrity.read_meta(folder)
        except DamagedCheckpoint as damage:
            damages[step] = str(damage)
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            damages[step] = f"{type(error).__name__}: {error}"
    leftovers = [
        path.name
        for suffix in (integrity.UNFINISHED, integrity.DAMAGED)
        for path in integrity.list_leftovers(directory, suffix)
    ]
    num_bytes = integrity.size_bytes(directory / str(max(metas))) if metas else 0
    return Health(metas, damages, leftovers, num_bytes)


def describe_health(health: Health) -> str:
    """Errors: UserError that names damaged steps; Doubt of leftovers."""
    good = ", ".join(map(str, health.metas)) or "none"
    if health.damages:
        listed = "; ".join(f"step {step}: {damage}" for step, damage in sorted(health.damages.items()))
        way_out = (
            f"A run goes on from step {max(health.metas)}, and sets later ones aside"
            if health.metas
            else "No good one is left: train in another --workdir"
        )
        raise UserError(f"damaged: {listed}. Good steps: {good}. {way_out}.")
    if health.leftovers:
        raise Doubt(
            f"{', '.join(health.leftovers)}: saves that were interrupted, or steps that were set aside; not used. "
            f"Good steps: {good}. What is .damaged may be deleted; what was interrupted goes with the next save."
        )
    if not health.metas:
        return "none yet"
    return f"steps {good}; every checksum of step {max(health.metas)} is right ({size(health.last_bytes)})"


def check_events(workdir: str) -> str | None:
    """Whether every line of the event log can be read."""
    path = reachable(workdir) / EVENTS
    if not path.exists():
        return None
    count, step = 0, None
    for event in read_events(path):
        count += 1
        step = event.get("step", step)
    return f"{count:,} events, the last of step {step}" if step is not None else f"{count:,} events"
