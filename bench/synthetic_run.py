"""Writes the folder of a run that never was: config, event log with restarts, bad steps, samples, scores.

For benches and screenshots of its page; every number is made up by formulas below, from a seed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.report.events import EVENTS, encode_event

SOURCES = {"web": (0.62, 0.0), "books": (0.2, -0.12), "code": (0.12, -0.55), "wikipedia": (0.06, -0.2)}
"""Share of the tokens, and how its loss lies beside the mean."""
SAMPLES = {
    "sample: The lion is in the": (
        "the the of of the and the to the in of the",
        "forest of the sea, and the man was the man of the man",
        "grass. It has not seen us yet, and the wind comes from the river",
        "tall grass by the river, where it waits for the evening. Nobody moves; the guide lifts his hand",
    ),
    "sample: La capitale de la France": (
        "de de la de",
        "est une ville de la ville",
        "est Paris, et la ville est",
        "est Paris. La Seine la traverse d'est en ouest, et les deux rives ont chacune leur caractère",
    ),
}


class Writer:
    """Appends events at times of its own."""

    def __init__(self, path: Path, began_s: float):
        self.now_s = began_s
        self._file = path.open("w", encoding="utf-8")

    def event(self, kind: str, step: int | None = None, /, **fields: Any) -> None:
        self._file.write(encode_event(kind, self.now_s, step, fields) + "\n")

    def close(self) -> None:
        self._file.close()


def write_run(
    folder: Path,
    num_steps: int = 100_000,
    *,
    seed: int = 0,
    learning_rate: float = 3e-4,
    restarts: int = 3,
    log_every: int = 10,
    finished: bool = True,
) -> Path:
    """A pretraining of 8B parameters on 256 chips, as the log would have it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    batch_tokens, step_s = 4_194_304, 5.2
    eval_every, save_every = max(num_steps // 100, 1), max(num_steps // 50, 1)
    log = Writer(folder / EVENTS, 1_790_000_000.0 + 86_400 * seed)
    stops = sorted(rng.integers(num_steps // 10, num_steps, restarts).tolist())
    bad = set(rng.integers(num_steps // 20, num_steps, 6).tolist())
    noise = rng.normal(0, 1, num_steps + 1)
    step, tokens, num_bad = 0, 0.0, 0
    for attempt in range(restarts + 1):
        first = step // save_every * save_every
        _start(log, first, num_steps, batch_tokens, attempt)
        last = stops[attempt] if attempt < restarts else num_steps if finished else int(0.83 * num_steps)
        for step in range(first + 1, last + 1):
            is_bad = step in bad
            num_bad += is_bad
            shape = (
                2.05
                + 8.5 * math.exp(-step / (0.006 * num_steps))
                + 1.9 * (1 + step / (0.004 * num_steps)) ** -0.42
            )
            shape += 0.03 * math.log(learning_rate / 3e-4) ** 2
            loss = math.nan if is_bad else shape + 0.035 * float(noise[step])
            grad_norm = (
                math.nan if is_bad else 0.25 + 2.5 * math.exp(-step / 400) + 0.03 * abs(float(noise[step]))
            )
            if step % 9973 == 0:
                grad_norm *= 18
            tokens = step * batch_tokens
            warm = min(1.0, step / max(1, num_steps // 50))
            rate = learning_rate * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / num_steps)))
            fields: dict[str, Any] = {
                "batch_hash": int(rng.integers(1 << 32)) if step % 97 == 0 else 7 * step,
                "train/grad_norm": grad_norm, "train/learning_rate": rate, "train/loss": loss, "train/num_bad": num_bad,
                "train/num_bad_in_row": int(is_bad), "train/num_inputs": batch_tokens,
                "train/num_tokens": float(batch_tokens - step % 512),
            }  # fmt: skip
            log.now_s += step_s
            if step % log_every == 0 or step == 1 or step == last:
                slow = step_s * (1 + 0.02 * abs(float(noise[step])))
                stall = 0.004 * abs(float(noise[-step])) + (0.3 if step % 20_011 < log_every else 0)
                fields |= {
                    "perf/step_time_s": slow, "perf/tokens_per_s": batch_tokens / slow,
                    "perf/flops_per_s": 5.2e10 * batch_tokens / slow, "perf/mfu": 0.56 * step_s / slow,
                    "perf/stall_share": min(stall, 0.9),
                }  # fmt: skip
                if step == first + 1:
                    fields["perf/compile_s"] = 4.0
                for name, (share, _) in SOURCES.items():
                    fields[f"data/{name}/tokens"] = int(tokens * share)
                    fields[f"data/{name}/epochs"] = tokens * share / (2e11 * (share + 0.02))
            log.event("step", step, **fields)
            if is_bad:
                log.event(
                    "bad_step",
                    step,
                    kind="nonfinite",
                    loss=loss,
                    grad_norm=grad_norm,
                    first_bad="layers[17] mlp",
                )
                log.event(
                    "warning",
                    text=f"Step {step} was bad and is skipped: loss nan; its batch: 612 rows of web",
                )
            if step % eval_every == 0 or step == num_steps:
                _evaluate(log, step, num_steps, shape)
            if step % save_every == 0 or step == num_steps:
                log.now_s += 1.4
                log.event("save", step)
                log.event(
                    "memory",
                    step,
                    peak_device_bytes=13.1e9 + 1e6 * attempt,
                    peak_process_bytes=41e9 + 2e4 * step,
                )
                log.event("span", step, kind="checkpoint", seconds=1.4, compile_s=0.0)
        if attempt < restarts:
            log.event(
                "warning", text="One process is late: step 5 after LogSteps (which waits for the devices)"
            )
            if attempt % 2:
                log.event("failed", error=f"Stopped: stopped by SIGTERM after step {step}, which is saved")
            log.now_s += 900 + 500 * attempt
    if finished:
        log.event("end", seconds=log.now_s - 1_790_000_000.0)
    log.close()
    _config(folder, num_steps, learning_rate, seed)
    return folder


def _start(log: Writer, first: int, num_steps: int, batch_tokens: int, attempt: int) -> None:
    log.now_s += 95
    words = f"resumed from step {first} in checkpoints" if first else "initialised from seed 0"
    log.event(
        "start",
        workdir="gs://bucket/llama31-8b",
        weights=words,
        model="8,030,261,248 parameters, 32 layers, bfloat16",
        mesh="data 1 x fsdp 256 x expert 1 x sequence 1 x tensor 1 on 256 TPU v6 lite device(s)",
        attention="splash (auto)",
        batch=f"512 x 8192 = {batch_tokens:,} tokens a step, 1 microbatch(es)",
    )
    total = num_steps * batch_tokens
    log.event(
        "plan",
        first_step=first,
        num_steps=num_steps,
        num_processes=64,
        num_devices=256,
        num_chips=256.0,
        device_kind="TPU v6 lite",
        peak_flops_per_s=256 * 918e12,
        num_positions=total,
        flops_per_token=5.2e10,
        flops=5.2e10 * total,
        device_bytes=13.6e9,
        sources={
            name: {"tokens": int(total * share), "epochs": total * share / (2e11 * (share + 0.02))}
            for name, (share, _) in SOURCES.items()
        },
    )
    log.event("startup", seconds=95.0, restore_s=21.0 if attempt else 0.0, compile_s=38.0)


def _evaluate(log: Writer, step: int, num_steps: int, shape: float) -> None:
    scores: dict[str, float] = {}
    for name, (_, beside) in SOURCES.items():
        loss = shape + 0.04 + beside
        scores |= {f"eval/{name}/loss": loss, f"eval/{name}/perplexity": math.exp(loss)}
        scores[f"eval/{name}/bits_per_byte"] = loss / math.log(2) / 4.4
    log.now_s += 9.0
    log.event("eval", step, **scores, **{"eval/loss": shape})
    for name, texts in SAMPLES.items():
        log.event("text", step, name=name, text=texts[min(3, int(4.2 * (step / num_steps) ** 0.4))])
    log.event("span", step, kind="evaluation", seconds=9.0, compile_s=0.0)


def _config(folder: Path, num_steps: int, learning_rate: float, seed: int) -> None:
    from jaxlm import run
    from jaxlm.config import to_json

    cfg = run.default_config()
    for name, (share, _) in SOURCES.items():
        cfg.data.sources[name] = {"path": f"gs://bucket/corpora/{name}", "weight_tokens": share}
    cfg.update_from_flattened_dict(
        {
            "data.seq_len": 8192, "data.global_batch_size": 512, "model.embed_dim": 4096, "model.num_layers": 32,
            "model.num_heads": 32, "model.num_kv_heads": 8, "train.num_steps": num_steps, "seed": seed,
            "optimizer.learning_rate": learning_rate,
            "report.sample_prompts": "The lion is in the|La capitale de la France",
        }
    )  # fmt: skip
    (folder / "config.json").write_text(to_json(run.resolve(cfg)))


def write_scores(folder: Path) -> None:
    """What `jaxlm evaluate --data --json` would leave: of a classifier, and of answers to instructions."""
    names, counts = ["bug", "question", "feature"], [[412, 31, 9], [44, 388, 27], [12, 35, 203]]
    array = np.array(counts)
    support, predicted, hits = array.sum(1), array.sum(0), np.diagonal(array)
    classes = [
        {"label": name, "precision": float(hits[i] / predicted[i]), "recall": float(hits[i] / support[i]),
         "f1": float(2 * hits[i] / (support[i] + predicted[i])), "support": int(support[i]),
         "num_predicted": int(predicted[i])}
        for i, name in enumerate(names)
    ]  # fmt: skip
    bins = [
        {"num_texts": n, "confidence": c, "accuracy": a}
        for n, c, a in (
            (31, 0.42, 0.39),
            (74, 0.55, 0.49),
            (121, 0.68, 0.63),
            (240, 0.83, 0.8),
            (695, 0.97, 0.95),
        )
    ]
    accuracy = float(hits.sum() / array.sum())
    single = {
        "step": 2000, "data": "heldout.jsonl", "task": "single_label", "num_texts": int(array.sum()), "labels": names,
        "loss": 0.41, "accuracy": accuracy, "macro": {"f1": float(np.mean([one["f1"] for one in classes]))},
        "classes": classes, "confusion": counts, "ece": 0.031, "calibration_bins": bins,
        "baselines": {"majority": {"label": "question", "accuracy": 0.395}},
    }  # fmt: skip
    answers = {
        "step": 2000, "data": "questions.jsonl", "num_records": 250, "exact_match": 0.412, "token_f1": 0.633,
        "rouge_l": 0.602, "chrf": 48.1, "bleu": 21.7, "answer_loss": 1.21, "answer_perplexity": 3.35,
        "mean_tokens": 41.2, "mean_reference_tokens": 38.9, "stop_rate": 0.988,
        "rules": [{"name": "three lines", "num_passed": 58, "num_records": 61, "pass_rate": 58 / 61},
                  {"name": "valid JSON", "num_passed": 40, "num_records": 44, "pass_rate": 40 / 44}],
    }  # fmt: skip
    for name, value in (("labels", single), ("answers", answers)):
        (folder / "evaluations").mkdir(exist_ok=True)
        (folder / "evaluations" / f"{name}.json").write_text(json.dumps(value))
