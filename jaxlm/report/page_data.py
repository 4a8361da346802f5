"""What the page of runs shows, as one JSON value: made again whenever a log has grown."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.report.decimate import NUM_BUCKETS, decimate
from jaxlm.report.goodput import PARTS, goodput, total
from jaxlm.report.run_folder import RunFolder
from jaxlm.report.run_log import RunLog, number
from jaxlm.report.writers import flatten

HIDDEN_KEYS = ("train/num_bad", "train/num_bad_in_row", "train/num_inputs", "train/num_tokens")
"""Of steps: counters, which other panels show."""
NUM_GRID = 400
"""Points at which steps are translated into tokens and hours; straight between them."""
MAX_TEXTS = 40
"""Of each sample; the first and last, and evenly between."""
MAX_OF_A_KIND = 1000
"""Marks on the time line, for each kind."""
MAX_LABELS = 200
"""Of a confusion matrix."""
DIGITS = 6
"""More than float32 has at the size of a pixel."""


def page_data(
    runs: Sequence[RunFolder],
    *,
    live: bool = False,
    defaults: Mapping[str, Any] | None = None,
    score_files: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything on the page.

    Args:
      live: whether the page asks for more.
      defaults: of every key of a config, flat: what differs from them is shown first.
      score_files: of `jaxlm evaluate`, beside those in the folders; each of the run that it names, else of the first.
    """
    now_s = time.time()
    owners = _owners(runs, score_files)
    shown = [run_data(one, now_s, owners.get(i, [])) for i, one in enumerate(runs)]
    return {
        "live": live,
        "made_s": round(now_s, 3),
        "parts": PARTS,
        "runs": shown,
        "total": None
        if len(runs) < 2
        else total([goodput(one.log, _now(one, now_s)) for one in runs]).as_dict(),
        "defaults": {key: cell(value) for key, value in (defaults or {}).items()},
    }


def _owners(runs: Sequence[RunFolder], files: Sequence[str]) -> dict[int, list[str]]:
    from etils import epath

    from jaxlm.limits import read_json
    from jaxlm.types import JSON_ERRORS

    found: dict[int, list[str]] = {}
    for path in files:
        name = ""
        try:
            name = str(read_json(epath.Path(path)).get("run", "")).rstrip("/")
        except (*JSON_ERRORS, OSError, AttributeError):
            pass  # said with its reason where it is read
        names = [one.path.rstrip("/") for one in runs]
        found.setdefault(names.index(name) if name in names else 0, []).append(path)
    return found


def _now(run: RunFolder, now_s: float) -> float | None:
    return now_s if run.state()[0] == "running" else None


def run_data(run: RunFolder, now_s: float, score_files: Sequence[str] = ()) -> dict[str, Any]:
    """One run."""
    log = run.log
    state, about = run.state()
    account = goodput(log, now_s if state == "running" else None)
    return {
        "name": run.name,
        "path": run.path,
        "state": state,
        "about": about,
        "facts": _facts(log),
        "summary": summary(log) | {"goodput": account.share, "wall_s": account.wall_s},
        "goodput": account.as_dict(),
        "grid": _grid(log),
        "series": _series(log),
        "sources": sources(log),
        "eval": _last_eval(log),
        "memory": _memory(log),
        "marks": _marks(log),
        "attempts": _attempts(log),
        "texts": _texts(log),
        "scores": [_shown_scores(one) for one in run.scores(score_files)],
        "config": {key: cell(value) for key, value in run.config.items()},
        "bad_lines": run.bad_lines[:20],
        "num_bad_lines": len(run.bad_lines),
    }


def cell(value: Any) -> str:
    """A value of a config, as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def plain(value: float | None) -> float | None:
    """As JSON can say it: with DIGITS digits, None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def _facts(log: RunLog) -> dict[str, str]:
    """What was decided at the start: words of the first screen."""
    start = log.start or {}
    return {
        str(key): value[:500]
        for key, value in start.items()
        if isinstance(value, str) and key not in ("event", "workdir")
    }


def summary(log: RunLog) -> dict[str, Any]:
    """The figures of the first screen. None: not known."""
    steps, losses = log.column("train/loss")
    last = int(log.times.steps[-1]) if len(log.times.steps) else None
    plan = log.plan or {}
    tokens = log.column("train/num_tokens")[1]
    finite = np.flatnonzero(np.isfinite(losses))
    held_out_steps, held_out = log.eval_column("eval/loss")
    sound = np.isfinite(held_out)
    best = int(np.argmin(np.where(sound, held_out, np.inf))) if sound.any() else None

    def median(key: str) -> float | None:
        values = log.column(key)[1]
        values = values[np.isfinite(values)]
        return plain(float(np.median(values))) if len(values) else None

    bad = log.column("train/num_bad")[1]
    num_steps = plan.get("num_steps")
    return {
        "step": last,
        "num_steps": num_steps if isinstance(num_steps, int) else None,
        "loss": plain(float(losses[finite[-1]])) if len(finite) else None,
        "loss_is_finite": not len(losses) or bool(math.isfinite(losses[-1])),
        "held_out": plain(float(held_out[-1])) if len(held_out) else None,
        "held_out_step": int(held_out_steps[-1]) if len(held_out) else None,
        "best_held_out": None if best is None else plain(float(held_out[best])),
        "best_step": None if best is None else int(held_out_steps[best]),
        "tokens": float(np.nansum(tokens)) if len(tokens) else None,
        "tokens_per_s": median("perf/tokens_per_s"),
        "step_time_s": median("perf/step_time_s"),
        "mfu": median("perf/mfu"),
        "flops_per_s": median("perf/flops_per_s"),
        "num_starts": len(log.attempts),
        "num_bad": int(bad[-1]) if len(bad) and math.isfinite(bad[-1]) else 0,
        "num_warnings": sum(kind == "warning" for _, kind, _, _ in log.marks),
        "num_devices": plan.get("num_devices"),
        "device_kind": plan.get("device_kind"),
        "left_s": _left_s(log, last, num_steps),
    }


def _left_s(log: RunLog, last: int | None, num_steps: Any) -> float | None:
    """To the last step, at the speed of the last measurements."""
    windows = log.windows
    if last is None or not isinstance(num_steps, int) or not len(windows.seconds):
        return None
    recent = slice(max(0, len(windows.seconds) - 10), None)
    num = sum(b - a + 1 for a, b in zip(windows.first[recent], windows.last[recent]))
    seconds = sum(windows.seconds[recent]) - sum(windows.compile_s[recent])
    return plain(max(0, num_steps - last) * seconds / num) if num else None


def _grid(log: RunLog) -> dict[str, list[float | None]]:
    """Steps, and the tokens and hours at which the run was there."""
    steps, times = log.column("time_s")
    if not len(steps):
        return {"step": [], "tokens": [], "hours": []}
    at = np.unique(np.linspace(0, len(steps) - 1, NUM_GRID).astype(np.int64))
    token_steps, tokens = log.column("train/num_tokens")
    so_far = np.interp(
        steps[at], token_steps, np.cumsum(np.nan_to_num(tokens, nan=0.0, posinf=0.0, neginf=0.0))
    ) if len(tokens) else np.zeros(len(at))  # fmt: skip
    began_s = log.attempts[0].began_s if log.attempts else times[0]
    return {
        "step": steps[at].tolist(),
        "tokens": [plain(v) for v in so_far.tolist()],
        "hours": [plain(v) for v in ((times[at] - began_s) / 3600).tolist()],
    }


def _series(log: RunLog) -> dict[str, Any]:
    """Every curve, decimated, by its key."""
    found = {
        key: curve(*log.column(key), 100 if key.startswith("data/") else NUM_BUCKETS)
        for key in sorted(log.columns)
        if key not in HIDDEN_KEYS
    }
    found |= {key: curve(*log.eval_column(key)) for key in log.eval_keys}
    for key in ("peak_process_bytes", "peak_device_bytes"):
        pairs = {
            one["step"]: value
            for one in log.memory
            if isinstance(one.get("step"), int) and (value := number(one.get(key))) is not None
        }
        if len(pairs) > 1:
            steps = sorted(pairs)
            found[f"memory/{key}"] = curve(np.array(steps), np.array([pairs[step] for step in steps]))
    return {key: value for key, value in found.items() if value["n"]}


def curve(steps: np.ndarray, values: np.ndarray, num_buckets: int = NUM_BUCKETS) -> dict[str, Any]:
    """x, y: what is drawn. mx, my: means of stretches, where not every point is. gone: [first, last] steps of values
    that are not finite. n: points of the log."""
    found = decimate(steps, values, num_buckets)
    short = {
        "x": found.steps.tolist(),
        "y": [plain(v) for v in found.values.tolist()],
        "gone": found.nonfinite,
        "n": found.num_points,
    }
    if not found.is_whole:
        short["mx"] = [round(v) for v in found.mean_steps.tolist()]
        short["my"] = [plain(v) for v in found.means.tolist()]
    return short


def sources(log: RunLog) -> list[dict[str, Any]]:
    """Tokens and epochs of each source: planned of the whole run, planned up to now, and read."""
    plan = log.plan or {}
    planned: dict[str, Any] = plan["sources"] if isinstance(plan.get("sources"), dict) else {}
    names = [*planned]
    for key in log.columns:
        if key.startswith("data/") and key.endswith("/tokens") and (name := key[5:-7]) not in names:
            names.append(name)
    num_steps = plan.get("num_steps")
    last = int(log.times.steps[-1]) if len(log.times.steps) else 0
    share = min(1.0, last / num_steps) if isinstance(num_steps, int) and num_steps > 0 else None
    rows = []
    for name in names:
        one: dict[str, Any] = planned[name] if isinstance(planned.get(name), dict) else {}
        row: dict[str, Any] = {"name": name}
        for what in ("tokens", "epochs"):
            read = log.column(f"data/{name}/{what}")[1]
            whole = number(one.get(what))
            row[f"planned_{what}"] = plain(whole)
            row[f"planned_{what}_now"] = None if whole is None or share is None else plain(whole * share)
            row[what] = plain(float(read[-1])) if len(read) else None
        rows.append(row)
    return rows


def _last_eval(log: RunLog) -> dict[str, Any]:
    """Held-out scores by source: the latest, and the best loss."""
    found: dict[str, dict[str, Any]] = {}
    for key in log.eval_keys:
        source, _, metric = key.removeprefix("eval/").rpartition("/")
        steps, values = log.eval_column(key)
        if not source or not len(values):
            continue
        row = found.setdefault(source, {})
        row[metric] = plain(float(values[-1]))
        if metric == "loss" and np.isfinite(values).any():
            i = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
            row |= {"best": plain(float(values[i])), "best_step": int(steps[i])}
    return found


def _memory(log: RunLog) -> dict[str, float | None]:
    peaks = {
        key: max((v for one in log.memory if (v := number(one.get(key))) is not None), default=None)
        for key in ("peak_device_bytes", "peak_process_bytes")
    }
    return peaks | {"planned_device_bytes": number((log.plan or {}).get("device_bytes"))}


def _thinned(rows: list[Any], limit: int) -> list[Any]:
    """At most so many, evenly, the first and the last among them."""
    if len(rows) <= limit:
        return rows
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, limit).astype(int)).tolist()]


def _marks(log: RunLog) -> dict[str, Any]:
    """Kind -> rows of [hours since the run began, Unix time, step, words], and how many there were."""
    began_s = log.attempts[0].began_s if log.attempts else 0.0
    kinds: dict[str, list[Any]] = {}
    for time_s, kind, step, words in log.marks:
        kinds.setdefault(kind, []).append([plain((time_s - began_s) / 3600), time_s, step, words])
    return {kind: {"n": len(rows), "rows": _thinned(rows, MAX_OF_A_KIND)} for kind, rows in kinds.items()} | (
        {"left out": {"n": log.num_marks_left_out, "rows": []}} if log.num_marks_left_out else {}
    )


def _attempts(log: RunLog) -> list[dict[str, Any]]:
    began_s = log.attempts[0].began_s if log.attempts else 0.0
    rows = [
        {
            "from": plain((one.began_s - began_s) / 3600),
            "to": plain((one.last_s - began_s) / 3600),
            "first_step": one.first_step,
            "last_step": one.last_step,
        }
        for one in log.attempts
    ]
    return _thinned(rows, MAX_OF_A_KIND)


def _texts(log: RunLog) -> list[dict[str, Any]]:
    """Samples by name, each with its texts by step."""
    by_name: dict[str, list[list[Any]]] = {}
    for (step, name), text in sorted(log.texts.items()):
        by_name.setdefault(name, []).append([step, text])
    return [
        {"name": name, "n": len(rows), "rows": _thinned(rows, MAX_TEXTS)} for name, rows in by_name.items()
    ][:100]


def _shown_scores(one: dict[str, Any]) -> dict[str, Any]:
    """Without what no table shows; numbers shortened."""
    kept = {
        key: _short(value)
        for key, value in one.items()
        if key
        not in ("run", "too_long", "dropped", "baselines", "consistency", "rules", "confusion", "classes")
        and not isinstance(value, dict)
    }
    for key in ("macro", "micro", "baselines", "consistency"):
        if isinstance(one.get(key), dict):
            kept |= {k: _short(v) for k, v in flatten({key: one[key]}).items() if not isinstance(v, list)}
    labels = one.get("labels")
    if isinstance(labels, list) and len(labels) <= MAX_LABELS:
        kept |= {key: _short(one[key]) for key in ("confusion", "classes") if isinstance(one.get(key), list)}
    if isinstance(one.get("rules"), list):
        kept["rules"] = [
            {key: _short(rule.get(key)) for key in ("name", "num_passed", "num_records", "pass_rate")}
            for rule in one["rules"][:100]
            if isinstance(rule, dict)
        ]
    return kept


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    return value[:2000] if isinstance(value, str) else value
