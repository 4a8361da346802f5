"""What to say of a folder that holds no run: the nearest one that does, or those that there are. Imports no JAX."""

from __future__ import annotations

import os

from etils import epath

from jaxlm.config import nearest
from jaxlm.data.files import reachable
from jaxlm.report.events import EVENTS
from jaxlm.types import UserError

CONFIG_FILE = "config.json"
MAX_NAMES = 5


def missing_run(workdir: str | os.PathLike, flag: str = "", missing: str = CONFIG_FILE) -> UserError:
    """The error for a folder without a run; `flag` is what stands before it on the command line (`--run=`)."""
    folder = reachable(workdir)
    if folder.exists() and not folder.is_dir():
        return UserError(f"{flag}{workdir} is a file. Give the folder of a run: the --workdir of a training.")
    what = (
        f"holds no run: {missing} is missing" if folder.exists() else "holds no run: there is no such folder"
    )
    return UserError(f"{flag}{workdir} {what}.{way_to_a_run(folder)}")


def way_to_a_run(folder: epath.Path) -> str:
    """A sentence or two, with a blank before it: the run with the nearest name, or what there is to choose from."""
    inside = runs_in(folder)
    beside = [] if inside else runs_in(folder.parent)
    match = nearest(folder.name, [name for name in beside if name != folder.name])
    if match:
        return f" Did you mean {folder.parent / match}?"
    names, where = (inside, folder) if inside else (beside, folder.parent)
    if not names:
        return " Give the --workdir of a training."
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (
        f" Give the --workdir of a training. There are runs in {where}: {', '.join(names[:MAX_NAMES])}{more}."
    )


def runs_in(folder: epath.Path) -> list[str]:
    """Names of the folders in this one that hold a run, sorted; none where it cannot be read."""
    try:
        return sorted(
            path.name
            for path in folder.iterdir()
            if any((path / name).exists() for name in (CONFIG_FILE, EVENTS))
        )
    except OSError:
        return []
