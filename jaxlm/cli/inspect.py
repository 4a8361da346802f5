"""Show what a run holds: checkpoints, parameters, data position, hashes, last events.

jaxlm inspect --run=runs/mine                 steps, why each is kept, and what the latest good one holds
jaxlm inspect --run=runs/mine --step=400      another step
jaxlm inspect --run=runs/mine --verify        read every byte and compare checksums (else: names and sizes)
jaxlm inspect --run=runs/mine --json          everything, for programs

Reads files only: no device, no arrays. Exit code 1 when a checkpoint is damaged.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jaxlm.report.missing_run import missing_run
from jaxlm.types import UserError

if TYPE_CHECKING:
    from etils import epath

    from jaxlm.checkpoint_meta import Meta

_SHAPE = {
    "checkpoint?": {"keep_last?": int, "keep_every_steps?": (int, None), "keep_best?": bool},
    "data?": {"sources?": {str: dict}},
}
"""All that is needed of a config here, which another version of jaxlm may have written."""
NUM_EVENTS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `jaxlm inspect`."""
    parser.add_argument("--run", required=True, metavar="DIR", help="the --workdir of a training")
    parser.add_argument("--step", type=int, help="the checkpoint to describe; default: the latest good one")
    parser.add_argument("--verify", action="store_true", help="read every byte and compare checksums")
    parser.add_argument("--all", action="store_true", help="list the arrays of the optimizer state too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm inspect`."""
    if config_argv:
        raise UserError(
            f"jaxlm inspect takes no {config_argv[0].partition('=')[0]}: the run has its own config."
        )
    from jaxlm.data.files import reachable

    facts = collect(reachable(args.run), args.step, verify=args.verify)
    if args.json:
        print(json.dumps(_finite(facts), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print(describe(facts, all_arrays=args.all))
    return 1 if any(one["damage"] for one in facts["steps"]) else 0


def collect(run: epath.Path, step: int | None, *, verify: bool) -> dict[str, Any]:
    """Everything there is to say about a run, as JSON.

    Errors: UserError when there is no run, no such step, or the step's own description is damaged.
    """
    from jaxlm import checkpoint_integrity as integrity

    directory = run / "checkpoints"
    if not (run / "config.json").exists() and not directory.exists():
        raise missing_run(run, "--run=", "config.json or checkpoints")
    config = _read_config(run / "config.json")
    damages: dict[int, str] = {}
    metas: dict[int, Meta] = {}
    for one in integrity.list_steps(directory):
        try:
            integrity.verify(directory / str(one), checksums=verify)
            metas[one] = integrity.read_meta(directory / str(one))
        except integrity.DamagedCheckpoint as damage:
            damages[one] = str(damage)
    policy = config.get("checkpoint", {})
    reasons = integrity.reasons_kept(
        {one: meta.eval_loss for one, meta in metas.items()},
        keep_last=policy.get("keep_last", 1),
        keep_every_steps=policy.get("keep_every_steps"),
        keep_best=policy.get("keep_best", False),
    )
    marks = integrity.read_marks(directory)
    steps = [
        {
            "step": one,
            "kept": reasons.get(one, []),
            "damage": damages.get(one),
            "size_bytes": integrity.size_bytes(directory / str(one)),
            "saved_at": metas[one].saved_at if one in metas else None,
            "eval_loss": metas[one].eval_loss if one in metas else None,
            "marks": sorted(marks.get(one, {})),
        }
        for one in sorted({*metas, *damages})
    ]
    losses = {one: meta.eval_loss for one, meta in metas.items() if meta.eval_loss is not None}
    return {
        "run": str(run),
        "steps": steps,
        "verified": verify,
        "set_aside": [path.name for path in integrity.list_leftovers(directory, integrity.DAMAGED)],
        "unfinished": [path.name for path in integrity.list_leftovers(directory, integrity.UNFINISHED)],
        "best": min(losses, key=lambda one: (losses[one], one)) if losses else None,
        "checkpoint": _describe_step(directory, step, metas, damages),
        "config": config,
        "events": _last_events(run),
    }


def _read_config(path: epath.Path) -> dict[str, Any]:
    from jaxlm.limits import check, read_json
    from jaxlm.types import JSON_ERRORS

    if not path.exists():
        return {}
    try:
        config = read_json(path)
    except JSON_ERRORS as error:
        raise UserError(f"{path} is no JSON ({error}): it was edited or damaged.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is no JSON object: it was edited or damaged.")
    try:
        check(config, _SHAPE)
    except ValueError as error:
        raise UserError(f"{path} is no config of a run ({error}): it was edited or damaged.") from None
    return config


def _describe_step(
    directory: epath.Path, step: int | None, metas: dict[int, Meta], damages: dict[int, str]
) -> dict[str, Any] | None:
    """The meta of the step that is asked for, with sizes; None when the run has no good step."""
    if step is None:
        if not metas:
            return None
        step = max(metas)
    if step in damages:
        raise UserError(
            f"--step={step} in {directory} is damaged: {damages[step]}. Good steps: {sorted(metas)}."
        )
    if step not in metas:
        raise UserError(f"--step={step} is not in {directory}; there are {sorted(metas)}.")
    meta = metas[step]
    described = dataclasses.asdict(meta)
    described["num_params"] = meta.num_params
    described["origin"] = meta.extra.get("origin")
    described["arrays"] = [
        {"path": name, "shape": list(spec.shape), "dtype": spec.dtype, "bytes": spec.num_bytes}
        for name, spec in meta.arrays.items()
    ]
    return described


def _last_events(run: epath.Path) -> list[dict[str, Any]]:
    from jaxlm.report.events import EVENTS, tail_events

    return tail_events(run / EVENTS, NUM_EVENTS) if (run / EVENTS).exists() else []


def _finite(value: Any) -> Any:
    """NaN and infinities by name: JSON has no numbers for them."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def describe(facts: dict[str, Any], *, all_arrays: bool) -> str:
    """The facts of `collect` for people, at most 100 columns wide."""
    from jaxlm.report.progress import start_screen

    sections: dict[str, Any] = {"run": {"directory": facts["run"]}}
    if facts["best"] is not None:
        sections["run"]["best held-out"] = f"step {facts['best']:,}"
    for key, label in (("set_aside", "set aside"), ("unfinished", "interrupted")):
        if facts[key]:
            sections["run"][label] = ", ".join(facts[key])
    checked = "every byte" if facts["verified"] else "names and sizes"
    sections[f"checkpoints ({checked} checked)"] = [
        {
            "step": f"{one['step']:,}",
            "size": _bytes(one["size_bytes"]),
            "saved": _time(one["saved_at"]),
            "held-out loss": "-" if one["eval_loss"] is None else f"{one['eval_loss']:.4f}",
            "kept as": ", ".join(one["kept"]) or "-",
            "done": ", ".join(one["marks"]) or "-",
            # A flipped bit changes no size: only --verify may call a checkpoint good.
            "health": "DAMAGED" if one["damage"] else "good" if facts["verified"] else "complete",
        }
        for one in facts["steps"]
    ]
    if damages := {f"step {one['step']:,}": one["damage"] for one in facts["steps"] if one["damage"]}:
        sections["damaged"] = damages
    if facts["checkpoint"] is not None:
        sections |= _checkpoint_sections(facts["checkpoint"], all_arrays)
    if facts["config"]:
        sections["config"] = _config_section(facts["config"])
    if facts["events"]:
        sections["last events"] = [
            {
                "time": _time(event.get("time_s")),
                "event": event["event"],
                "step": f"{event['step']:,}" if "step" in event else "",
                "values": _values(event),
            }
            for event in facts["events"]
        ]
    return start_screen(sections)


def _origin(origin: dict[str, Any] | None) -> dict[str, str]:
    """The line about weights that were there before the run."""
    if not origin:
        return {}
    kind = f" ({origin['model_type']})" if "model_type" in origin else ""
    return {"origin": f"{origin['source']}{kind}"}


def _checkpoint_sections(checkpoint: dict[str, Any], all_arrays: bool) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for array in checkpoint["arrays"]:
        groups.setdefault(array["path"].partition("/")[0], []).append(array)
    sizes = {name: sum(array["bytes"] for array in arrays) for name, arrays in groups.items()}
    sections: dict[str, Any] = {
        f"checkpoint {checkpoint['step']:,}": {
            "data position": f"step {checkpoint['step']:,}, {checkpoint['tokens']:,} tokens",
            "epochs": ", ".join(f"{name} {value:.3f}" for name, value in checkpoint["epochs"].items()) or "-",
            **_origin(checkpoint["origin"]),
            "tokenizer": checkpoint["tokenizer_sha256"] or "-",
            **{f"corpus {name}": sha256 for name, sha256 in checkpoint["corpus_sha256"].items()},
            "training time": _duration(checkpoint["wall_time_s"]),
            "written by": f"jaxlm {checkpoint['version']}, {_time(checkpoint['saved_at'])}",
            "parameters": f"{checkpoint['num_params']:,}, {_bytes(sizes.get('params', 0))}",
            **{
                name: f"{len(arrays)} arrays, {_bytes(sizes[name])}"
                for name, arrays in groups.items()
                if name != "params" and (len(arrays) > 1 or arrays[0]["shape"])
            },
        }
    }
    shown = [name for name in groups if name == "params" or all_arrays]
    for name in shown:
        sections[name] = [
            {
                "array": array["path"],
                "shape": " x ".join(map(str, array["shape"])) or "scalar",
                "dtype": array["dtype"],
                "size": _bytes(array["bytes"]),
            }
            for array in groups[name]
        ]
    return sections


def _config_section(config: dict[str, Any]) -> dict[str, str]:
    section: dict[str, str] = {}
    for name, part in config.items():
        if isinstance(part, dict):
            plain = {k: v for k, v in part.items() if not isinstance(v, dict)}
            section[name] = _pairs(plain)
            for inner, fields in part.get("sources", {}).items():
                section[f"  {inner}"] = _pairs(fields)
        elif part is not None:
            section[name] = str(part)
    return section


def _pairs(fields: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in fields.items() if value is not None)


def _values(event: dict[str, Any]) -> str:
    """The event's values, losses first: the end of a long line is cut off."""
    hidden = ("event", "time_s", "step", "batch_hash")
    fields = {
        key: event[key] for key in sorted(event, key=lambda key: "loss" not in key) if key not in hidden
    }
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())


def _bytes(count: int) -> str:
    from jaxlm.report.progress import quantity

    return quantity(count, "B")


def _duration(seconds: float) -> str:
    from jaxlm.report.progress import duration

    return duration(seconds)


def _time(unix_s: float | None) -> str:
    try:
        return "-" if unix_s is None else datetime.fromtimestamp(unix_s).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # of a damaged file: no such year
        return "?"
