"""Checkpoints: one composite of state, data position, config and hashes, saved behind the back of training.

Orbax writes the arrays, asynchronously, each shard by the host that has it, and restores them onto any mesh.
Added here: a seal over every file (`checkpoint_integrity.py`), the last good step where one is damaged,
checks that a checkpoint belongs to this model and tokenizer before any array is read, and what is kept.

    with Checkpoints(workdir / "checkpoints", config.checkpoint, warn=report.warning) as checkpoints:
        if checkpoints.latest_step() is not None:
            state, meta = checkpoints.restore(abstract_state, tokenizer_sha256=tokenizer.sha256)
        ...
        if checkpoints.due(step):
            checkpoints.save(state, Meta(step, ...))

Importing this module imports neither JAX nor Orbax (together about a second).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from etils import epath

from jaxlm import checkpoint_integrity as integrity
from jaxlm import processes
from jaxlm.checkpoint_integrity import DamagedCheckpoint
from jaxlm.checkpoint_meta import ArraySpec, Meta, check_corpus, check_fit, check_tokenizer
from jaxlm.checkpoint_orbax import import_orbax
from jaxlm.limits import MALFORMED
from jaxlm.paths import is_local
from jaxlm.types import Params, PyTree, UserError

CHUNK_BYTES = 16 << 20
"""Arrays are stored in chunks of at most this size. Restoring 1.5 GB on two cores takes 1.0-1.5 s so, 3.0 s
with whole arrays; and a device that wants a part of an array reads little more than that part."""


EVALUATED, EVAL_LOSS, REPLAYED = "evaluated", "eval_loss", "replayed"
"""Marks of a step: its evaluation was made up for, and what it said; a bad step after it can be repeated from it, so it
is kept."""


class Policy(Protocol):
    """When to save and what to keep: `CheckpointConfig` of jaxlm/train/config.py."""

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


def _discard(folder: epath.Path) -> None:
    """Deletes what a failed save has written; other threads may still be at it, so this is tried for a while."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            if not folder.exists():
                return
            folder.rmtree()
        time.sleep(0.05)


class Checkpoints:
    """The checkpoints of one run. Every process makes one and calls the same methods in the same order.

    Args:
      directory: holds one folder per step; local or gs://.
      policy: when to save and what to keep; None: read-only, nothing is written, renamed or deleted.
      warn: called with one line, also from a thread, when something went wrong that need not stop the run: a
        damaged step that was skipped, a periodic save that failed.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        policy: Policy | None = None,
        *,
        warn: Callable[[str], None] = warn_on_stderr,
    ):
        self.directory = integrity.absolute(directory)  # Orbax takes no other
        self._policy = policy
        self._warn = warn
        self._orbax: Any = None
        self._saving: threading.Thread | None = None
        self._step = -1  # being saved
        self._failure: tuple[int, BaseException] | None = None
        self._interrupted: list[epath.Path] = []
        if policy is not None:
            # Orbax takes 0.3 s to import: meanwhile, so that the first save need not wait for it.
            threading.Thread(target=import_orbax, name="import_orbax").start()
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
        """Starts saving `state` as step `meta.step`; returns when training may go on, donation included.

        Waits for the state to be computed, for its copy to the host (accelerators) and for a previous save
        that is still being written; the rest happens on threads. On CPU nothing is copied here: while arrays
        are being written XLA does not reuse their memory, and a step that donates them makes a copy instead.

        Returns False when the step is on disk already. A save that fails is told of by the next call: a full
        or forbidden disk through `warn` here and as an error in `wait`; any other failure is raised.
        """
        assert self._policy is not None, "opened read-only"
        self._join()
        self._report(raise_disk_errors=False)
        step = self._step = meta.step
        if step in processes.from_first(
            self.all_steps, "Saving a checkpoint"
        ):  # a shared file system may show others other ones
            return False
        ocp = import_orbax()
        meta = dataclasses.replace(meta, arrays=array_specs(state), saved_at=time.time())
        arrays = _nest(named_arrays(state))
        chunks = _nest(dict.fromkeys(meta.arrays, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)))
        try:
            self._open_orbax().save(
                self.directory / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays, save_args=chunks),
                    meta=ocp.args.JsonSave(meta.to_json()),
                ),
            )
        except Exception as error:
            self._fail(step, error)  # told by the next call, as when it fails on a thread
            return False
        self._saving = threading.Thread(target=self._finish, args=(step,), name="finish_save")
        self._saving.start()
        return True

    @property
    def saving(self) -> bool:
        """Whether a save is still being written."""
        return self._saving is not None and self._saving.is_alive()

    def wait(self) -> None:
        """Returns when the last save is on disk and what need not be kept is deleted.

        Errors: UserError when the disk is full or may not be written to; others as they came.
        """
        self._join()
        self._report(raise_disk_errors=True)

    def close(self) -> None:
        """Waits, and lets go of Orbax's threads. Errors: as `wait`."""
        try:
            self.wait()
        finally:
            if self._orbax is not None:
                self._orbax.close()
                self._orbax = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ):
        if error is None:
            self.close()
            return
        self._join()  # the save under way is finished; the error that ends the run is the one to be seen
        if self._failure is not None:
            self._warn(f"Checkpoint {self._failure[0]} was not saved either: {self._failure[1]}")
            self._failure = None
        self.close()

    def _finish(self, step: int) -> None:
        """On a thread: waits for the commit, then deletes what need not be kept."""
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            self._fail(step, error)
            return
        try:
            if processes.is_first():
                self._delete_old()
        except (OSError, UserError) as error:
            self._warn(f"Old checkpoints in {self.directory} could not be deleted: {error}")

    def _fail(self, step: int, error: BaseException) -> None:
        self._failure = (step, error)
        with contextlib.suppress(Exception):  # would say the same again; the next save starts with a new one
            self._orbax.close()
        self._orbax = None
        partial = self.directory / f"{step}{integrity.UNFINISHED}"
        if processes.is_alone():
            _discard(partial)
        self._interrupted.append(partial)  # others may still be writing there: hosts, or threads of Orbax

    def _join(self) -> None:
        if self._saving is not None:
            self._saving.join()
            self._saving = None

    def _report(self, *, raise_disk_errors: bool) -> None:
        """Raises or warns about a save that failed, once."""
        if self._failure is None:
            return
        (step, error), self._failure = self._failure, None
        reason = integrity.disk_reason(error)
        if reason is None:
            raise error
        message = (
            f"Checkpoint {step} could not be saved in {self.directory}: {reason}. Nothing half-written is "
            f"kept; on disk are steps {self.all_steps()}. Free some space or use another --workdir."
        )
        if raise_disk_errors:
            raise UserError(message) from error
        self._warn(f"{message} Training goes on and saves again at the next step that is due.")

    def _delete_old(self) -> None:
        assert self._policy is not None
        losses: dict[int, float | None] = {}
        marks = self._marks()
        for step in self.all_steps():
            try:
                loss = integrity.read_meta(self.directory / str(step)).eval_loss
                losses[step] = marks.get(step, {}).get(EVAL_LOSS) if loss is None else loss
            except DamagedCheckpoint:
                continue  # not counted among the good ones, so that it displaces none; `restore` will name it
        reasons = integrity.reasons_kept(
            losses,
            keep_last=self._policy.keep_last,
            keep_every_steps=self._policy.keep_every_steps,
            keep_best=self._policy.keep_best,
            pinned=[step for step, names in marks.items() if REPLAYED in names],
        )
        for step, why in reasons.items():
            if not why:
                integrity.delete_step(self.directory / str(step))
        for partial in self._interrupted:
            if partial.exists():
                partial.rmtree()
        self._interrupted.clear()

    def _tidy(self) -> None:
        """What an earlier process left behind when it was killed."""
        if not processes.is_first():
            return
        for folder in integrity.list_leftovers(self.directory, integrity.DELETING):
            folder.rmtree()
        self._interrupted = integrity.list_leftovers(self.directory, integrity.UNFINISHED)
        for folder in self._interrupted:
            self._warn(
                f"{folder} is a save that was interrupted: not used, and deleted after the next good one."
            )

    # Restoring.

    def restore(
        self,
        abstract_state: PyTree,
        *,
        step: int | None = None,
        tokenizer_sha256: str | None = None,
        corpus_sha256: Mapping[str, str] | None = None,
    ) -> Restored:
        """The state of a step, placed as asked, and its meta.

        A damaged step is named, set aside and passed over for the one before it; a given `step` is not.

        Args:
          abstract_state: ShapeDtypeStructs with shardings, on any mesh; without a sharding, the first device.
          tokenizer_sha256, corpus_sha256: of the run's tokenizer and sources; None does not compare.

        Errors: UserError when no good step is left, when shape, dtype or name of any array differs (never a
        partial load), or when the checkpoint was trained with another tokenizer or on other data.
        """
        return self._restore(abstract_state, None, step, tokenizer_sha256, corpus_sha256)

    def restore_params(
        self,
        abstract_params: Params,
        *,
        step: int | None = None,
        tokenizer_sha256: str | None = None,
        as_stored: bool = False,
    ) -> Restored:
        """The params of a TrainState alone, read without its optimizer state; `.state` holds them.

        Another dtype than the saved one is allowed: arrays are cast on the host while they are read; `as_stored`
        keeps the saved one instead.

        Errors: as `restore`.
        """
        return self._restore(abstract_params, "params", step, tokenizer_sha256, as_stored=as_stored)

    def _restore(
        self,
        abstract: PyTree,
        group: str | None,
        step: int | None,
        tokenizer_sha256: str | None,
        corpus_sha256: Mapping[str, str] | None = None,
        as_stored: bool = False,
    ) -> Restored:
        import jax

        ocp = import_orbax()
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        prefix = "" if group is None else f"{group}/"
        while True:
            good = self._choose(step)
            folder = self.directory / str(good)
            meta = integrity.read_meta(folder)
            where = f"Checkpoint {good} in {self.directory}"
            check_corpus(where, meta, corpus_sha256, tokenizer_sha256)
            check_tokenizer(where, meta, tokenizer_sha256)
            check_fit(
                where, meta, {prefix + name: spec for name, spec in array_specs(abstract).items()}, group
            )
            wanted = {
                name: jax.ShapeDtypeStruct(
                    leaf.shape,
                    meta.arrays[name].dtype if as_stored else leaf.dtype,
                    sharding=leaf.sharding or device,
                )
                for name, leaf in ((prefix + n, leaf) for n, leaf in named_arrays(abstract).items())
            }
            wanted_tree = _nest(wanted)
            try:
                arrays = (
                    self._open_orbax()
                    .restore(
                        folder,
                        args=ocp.args.Composite(
                            state=ocp.args.PyTreeRestore(
                                item=wanted_tree,
                                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted_tree),
                                partial_restore=group is not None,
                            )
                        ),
                    )
                    .state
                )
            except Exception as error:
                if self._policy is None and step is None and not folder.exists():
                    continue  # a reader beside a running training: the step was deleted meanwhile
                if isinstance(error, MALFORMED) or type(error) is Exception:  # of Orbax and TensorStore
                    reason = (str(error).splitlines() or [""])[0]
                    raise UserError(
                        f"{where} cannot be read, though its files are those of its seal ({type(error).__name__}: "
                        f"{reason:.300}): it was not written by jaxlm, or was edited and sealed again. Take another."
                    ) from error
                raise
            named = named_arrays(arrays)
            leaves = [named[name] for name in wanted]
            return Restored(jax.tree.unflatten(jax.tree.structure(abstract), leaves), meta)

    def _choose(self, step: int | None) -> int:
        """The step to use, on which all processes agree; damaged later ones are set aside."""
        if step is not None:
            self._check_exists(step)
        damages: dict[int, str] = {}
        tried: set[int] = set()
        while candidates := [
            s
            for s in processes.from_first(self.all_steps, "The steps on disk")
            if s not in tried and step in (None, s)
        ]:
            candidate = max(candidates)
            tried.add(candidate)
            folder = self.directory / str(candidate)
            if not processes.from_first(folder.exists, "The steps on disk"):
                continue
            if not (damage := self._damage(candidate)):
                for bad, reason in damages.items():
                    self._set_aside(bad, reason, candidate)
                return candidate
            damages[candidate] = damage
        if not damages:
            raise UserError(f"There is no checkpoint in {self.directory}. Check the path of the run.")
        listed = "; ".join(f"{bad}: {reason}" for bad, reason in damages.items())
        others = [s for s in self.all_steps() if s not in damages]
        way_out = f"Try one of the steps {others}." if others else "Train again in another --workdir."
        raise UserError(f"No good checkpoint is left in {self.directory} ({listed}). {way_out}")

    def _damage(self, step: int) -> str:
        """What is wrong with a step, "" if nothing is; hosts share the reading, and agree."""
        folder = self.directory / str(step)
        try:
            integrity.verify(folder, part=processes.index(), num_parts=processes.count())
            integrity.read_meta(folder)
            damage = ""
        except DamagedCheckpoint as error:
            damage = str(error)
        return next(filter(None, processes.from_all(damage, f"Checking checkpoint {step}")), "")

    def _set_aside(self, step: int, reason: str, instead: int) -> None:
        folder = self.directory / str(step)
        text = f"Checkpoint {step} in {self.directory} is damaged: {reason}. Using step {instead} instead"
        if self._policy is None or not is_local(folder):
            self._warn(f"{text}; the damaged one is left where it is.")
        elif processes.is_first():
            self._warn(f"{text}; the damaged one is now {integrity.set_aside(folder).name}.")

    def _check_exists(self, step: int) -> None:
        if step not in (steps := self.all_steps()):
            raise UserError(f"There is no checkpoint of step {step} in {self.directory}; there are {steps}.")

    # What is done after a save, and would otherwise be forgotten when the run is killed in between.

    def mark(self, step: int, name: str, value: float | None = None) -> None:
        """Notes that something which follows a save (an evaluation, an export) was completed.

        Args:
          value: of EVAL_LOSS, so that `keep_best` knows it; None: the time, in Unix seconds.
        """
        if processes.is_first():
            self._marks()
            integrity.write_mark(self.directory, step, name, value)

    def marked(self, step: int, name: str) -> bool:
        """Whether `mark(step, name)` was called, by this run or an earlier one."""
        return name in self._marks().get(step, {})

    def _marks(self) -> dict[int, dict[str, float]]:
        """Damaged, they are put aside: what they listed is done again, and no run ends for it."""
        try:
            return integrity.read_marks(self.directory)
        except UserError as error:
            if self._policy is not None:
                integrity.set_aside(self.directory / integrity.MARKS)
                self._warn(f"{error} It was renamed.")
            return {}

    def _open_orbax(self) -> Any:
        """One AsyncCheckpointer for saving and restoring, made when it is first needed."""
        if self._orbax is None:
            ocp = import_orbax()
            # Compressing float32 weights saves 8% of the space for five times the time.
            arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, use_compression=False)
            self._orbax = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(state=arrays, meta=ocp.JsonCheckpointHandler()),
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            )
        return self._orbax

    def _seal(self) -> None:
        """Called by Orbax on the first host when all have written, before the folder gets its name."""
        partial = self.directory / f"{self._step}{integrity.UNFINISHED}"
        integrity.seal(partial if partial.exists() else self.directory / str(self._step))
