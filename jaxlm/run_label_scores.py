"""How a classifier labels the held-out records at its last evaluation: confusion, calibration, each label's scores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm import processes
from jaxlm.evaluate.classification import scores_of
from jaxlm.evaluate.classifier import ClassifierReport
from jaxlm.models.build import LM, states
from jaxlm.objectives.classify import pooled
from jaxlm.report.run_report import RunReport
from jaxlm.types import Batch, Params

if TYPE_CHECKING:
    from jaxlm.run import Run


def make_logits(lm: LM) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array, jax.Array]]:
    """logits(params, batch) -> (logits_BC, labels, is a text [B]); to be jitted."""

    def logits(params: Params, batch: Batch):
        batch = lm.arrange(batch)
        x_BTD, _ = states(lm, params, batch)
        found_BC = lm.head(params, pooled(x_BTD, batch["weights"]))
        return found_BC, batch["labels"], (batch["weights"] > 0).any(axis=1)

    return logits


def make_label_scores(
    run: Run,
    report: RunReport,
    held_out: Mapping[str, Callable],
    place: Callable[[Batch], Batch],
) -> Callable[[int, Params], None] | None:
    """label_scores(step, trained weights), which at the last step labels the held-out records once more; None for other
    objectives. All processes take part, the first one writes: a `scores` event, and plots for the writers.

    Args:
      held_out: by source: see `run_hooks.held_out_batches`.
    """
    cfg, pieces = run.config, run.pieces
    if cfg.objective != "classify":
        return None
    tuning, logits = pieces.tuning, make_logits(pieces.lm)
    everywhere = NamedSharding(pieces.mesh, PartitionSpec())
    logits_of = jax.jit(
        lambda params, batch, frozen=None: logits(tuning.merge(params, frozen), batch),
        out_shardings=everywhere,
    )

    def label_scores(step: int, params: Params) -> None:
        if step != run.plan.num_steps:
            return
        also = (pieces.steps.frozen,) if tuning.freezes else ()
        for name, make_batches in held_out.items():
            parts: list[Any] = []
            for batch, _ in make_batches(run.data.tokenizer.bytes_per_id()):
                kept = {key: batch[key] for key in batch if key not in ("source", "fingerprint")}
                found_BC, labels, is_text_B = jax.device_get(logits_of(params, place(kept), *also))
                parts.append((found_BC[is_text_B], labels[is_text_B]))
            if not processes.is_first() or not parts:
                continue
            logits_NC, labels = (np.concatenate(arrays) for arrays in zip(*parts))
            _write(run, report, step, name, logits_NC, labels)

    return label_scores


def _write(
    run: Run, report: RunReport, step: int, name: str, logits_NC: np.ndarray, labels: np.ndarray
) -> None:
    if not len(logits_NC) or not np.isfinite(logits_NC).all():
        report.warning(
            f"The held-out records of {name} have no table of labels: "
            + ("there are none." if not len(logits_NC) else "the logits of the model are not finite.")
        )
        return
    scores = scores_of(run.config.classify.task, logits_NC, labels, run.data.labels or ())
    with tempfile.TemporaryDirectory() as folder:
        images: dict[str, str] = {}
        if run.config.report.names:
            images = _draw(report, ClassifierReport(scores, {}, {}, 0, None, logits_NC, labels), folder)
        report.label_scores(step, name, scores, images)


def _draw(report: RunReport, found: ClassifierReport, folder: str) -> dict[str, str]:
    """Name -> PNG; empty without matplotlib, which is said."""
    from importlib.util import find_spec

    from jaxlm.evaluate.classifier_show import draw

    if find_spec("matplotlib") is None:
        report.say("No plots for the writers: they need matplotlib (pip install 'jaxlm[plot]').")
        return {}
    return {path.stem: str(path) for path in draw(found, folder)}
