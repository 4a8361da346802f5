"""Checkpoints: one composite of state, data position, config and hashes, saved behind the back of training.

Orbax writes the arrays, asynchronously and each shard by the host that has it, and restores them onto any mesh.
What is added here: a seal over every file (`checkpoint_integrity.py`), falling back to the last good step when one is damaged,
checks that a checkpoint belongs to this model and tokenizer before an array is read, and what is kept.

    with Checkpoints(workdir / "checkpoints", config.checkpoint, warn=report.warning) as checkpoints:
        if checkpoints.latest_step() is not None:
            state, meta = checkpoints.restore(abstract_state, tokenizer_sha256=tokenizer.sha256)
        ...
        if checkpoints.due(step):
            checkpoints.save(state, Meta(step, ...))

Importing this module imports neither JAX nor Orbax (together about a second).
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from etils import epath

from jaxlm import checkpoint_integrity as integrity
from jaxlm.checkpoint_integrity import ArraySpec, DamagedCheckpoint, Meta
from jaxlm.types import Params, PyTree, UserError

CHUNK_BYTES = 16 << 20
"""Arrays are stored in chunks of at most this size: restoring then takes a third of the time it takes with whole
arrays (1.0-1.5 s against 3.0 s for 1.5 GB on two cores), and a device that wants a part of an array reads little more."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
DISK_WORDS = ("No space left", "quota exceeded", "File too large", "Read-only file system", "Permission denied")


class Policy(Protocol):
    """When to save and what to keep: `CheckpointConfig`, which lives with the other sections of the train config."""

    @property
    def every_steps(self) -> int: ...
    @property
    def keep_last(self) -> int: ...
    @property
    def keep_every_steps(self) -> int | None: ...
    @property
    def keep_best(self) -> bool: ...


class Restored(NamedTuple):
    """What a checkpoint held; for `restore_params`, `state` is the params."""

    state: PyTree
    meta: Meta


class Failure(NamedTuple):
    """A save that did not reach the disk."""

    step: int
    error: BaseException


def warn_on_stderr(message: str) -> None:
    """Prints a warning line; a run passes its event log's method instead."""
    print(f"jaxlm: warning: {message}", file=sys.stderr)


def named_arrays(tree: PyTree) -> dict[str, Any]:
    """`{"params/layers/q": leaf, ...}`: the leaves of a tree by their path, in the tree's order."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def array_specs(tree: PyTree) -> dict[str, ArraySpec]:
    """Shape and dtype of every leaf, by path."""
    return {name: ArraySpec(tuple(x.shape), str(x.dtype)) for name, x in named_arrays(tree).items()}


def _nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Plain nested dicts: what is on disk does not depend on the classes of optimizer states."""
    nested: dict[str, Any] = {}
    for name, leaf in named.items():
        *folders, last = name.split("/")
        inner = nested
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = leaf
    return nested


class Checkpoints:
    """The checkpoints of one run. Every process of a run makes one and calls the same methods in the same order.

    Args:
      directory: holds one folder per step; local or gs://.
      policy: when to save and what to keep; None: read-only, nothing is written, renamed or deleted.
      warn: called with one line when something went wrong that need not stop the run: a damaged step that was
        skipped, a periodic save that failed.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        policy: Policy | None = None,
        *,
        warn: Callable[[str], None] = warn_on_stderr,
    ):
        self.directory = epath.Path(directory)
        self._policy = policy
        self._warn = warn
        self._orbax: Any = None
        self._saving: threading.Thread | None = None
        self._failure: Failure | None = None
        self._interrupted: list[epath.Path] = []
        if policy is not None:
            # Orbax takes 0.3 s to import: done while the caller compiles, so that the first save need not wait.
            threading.Thread(target=_import_orbax, name="import_orbax").start()
            self._tidy()

    def due(self, step: int) -> bool:
        """Whether the policy saves after this step."""
        return self._policy is not None and step % self._policy.every_steps == 0

    def all_steps(self) -> list[int]:
        """Steps on disk, ascending; `restore` finds out whether they are whole."""
        return integrity.list_steps(self.directory)

    def latest_step(self) -> int | None:
        """The last step on disk, or None when the run has not saved yet."""
        return max(self.all_steps(), default=None)

    def damaged(self) -> list[epath.Path]:
        """Folders of steps that were set aside."""
        return integrity.list_leftovers(self.directory, integrity.DAMAGED)

    def read_meta(self, step: int) -> Meta:
        """The meta of one step: no arrays, no devices.

        Errors: UserError when there is no such step or its meta is damaged.
        """
        self._check_exists(step)
        try:
            return integrity.read_meta(self.directory / str(step))
        except DamagedCheckpoint as damage:
            raise UserError(f"Checkpoint {step} in {self.directory} is damaged: {damage}.") from None

    # Saving.

    def save(self, state: PyTree, meta: Meta) -> bool:
        """Starts saving `state` as step `meta.step` and returns once it is safe to train on; donation included.

        Waits for the state to be computed, for its copy to the host (accelerators) and for a previous save that is
        still being written; the rest happens on threads. On CPU nothing is copied here: while the arrays are being
        written XLA declines to reuse their memory, and the next step's donation makes a copy instead.

        Returns False when the step is on disk already. A previous save that failed for want of disk space is
        reported through `warn`; any other failure of it is raised.
        """
        assert self._policy is not None, "opened read-only"
        self._join()
        if (failure := self._take_failure()) is not None:
            self._warn(self._explain(failure))
        step = meta.step
        if step in self.all_steps():
            return False
        ocp = _import_orbax()
        meta = dataclasses.replace(meta, arrays=array_specs(state), saved_at=time.time())
        arrays = _nest(named_arrays(state))
        chunks = _nest(dict.fromkeys(meta.arrays, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)))
        try:
            self._open_orbax().save(
                self.directory / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays, save_args=chunks), meta=ocp.args.JsonSave(meta.to_json())
                ),
            )
        except Exception as error:
            self._fail(step, error)
            self._warn(self._explain(self._failure))
            return False
        self._saving = threading.Thread(target=self._finish, args=(step,), name="finish_save")
        self._saving.start()
        return True

    def _finish(self, step: int) -> None:
        """On a thread: waits for the commit, then deletes what need not be kept."""
        try:
            self._orbax.wait_until_finished()
            if _process_index() == 0:
                self._delete_old()
        except Exception as error:
            self._fail(step, error)
