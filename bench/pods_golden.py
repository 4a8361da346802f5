"""Renews what tests/plan/test_pods_compiled.py holds `jaxlm plan` against, from the JSON of compiled pod configs.

    python bench/pods.py --out=FOLDER
    python bench/pods_golden.py FOLDER           writes tests/plan/pods_compiled.json, and prints the plan beside it

Configs that are not in FOLDER keep the numbers that they have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jaxlm.cli._plan_run import completed
from jaxlm.plan.memory import predict
from jaxlm.plan.step_time import predict_step
from jaxlm.plan.topology import parse as parse_topology
from jaxlm.run import parse, resolve

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "plan" / "pods_compiled.json"


def golden(numbers: dict) -> dict:
    """What of `jaxlm compile --json` the plan is held against."""
    return {
        "topology": numbers["topology"]["name"],
        "num_slices": numbers["topology"]["num_slices"],
        "mesh": numbers["mesh"],
        "versions": numbers["versions"],
        "memory_bytes": numbers["memory"]["total_bytes"],
        "cycles_s": (numbers["time"] or {}).get("cycles_s"),
        "wire_s": (numbers["time"] or {}).get("wire_s"),
        "flops": (numbers["step"] or {}).get("flops"),
    }


def planned(name: str, row: dict) -> tuple[float, float]:
    """(bytes of a device, seconds of a step) that the plan says."""
    cfg, _ = completed(resolve(parse([f"--config={name}"])))
    on = parse_topology(row["topology"], row["num_slices"])
    assert on.chip is not None
    step = predict_step(cfg, on.chip, row["mesh"], on.shape, on.num_slices)
    return predict(cfg, row["mesh"], on.num_devices).total, step.step_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of bench/pods.py --out")
    args = parser.parse_args()
    rows = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    found = {
        path.stem: golden(json.loads(path.read_text(encoding="utf-8"))) for path in args.folder.glob("*.json")
    }
    if not found:
        parser.error(f"{args.folder} holds no JSON of bench/pods.py --out.")
    rows = dict(sorted((rows | found).items()))
    GOLDEN.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{'config':<34} {'GiB':>6} {'plan':>7}   {'cycles s':>8} {'plan':>7}")
    errors = []
    for name, row in rows.items():
        num_bytes, seconds = planned(name, row)
        off = num_bytes / row["memory_bytes"] - 1
        line = f"{name:<34} {row['memory_bytes'] / 2**30:>6.2f} {100 * off:>+6.1f}%"
        if row["cycles_s"]:
            errors.append(seconds / row["cycles_s"] - 1)
            line += f"   {row['cycles_s']:>8.3f} {100 * (seconds / row['cycles_s'] - 1):>+6.1f}%"
        print(line)
    print(f"AGAINST_COMPILED of jaxlm/plan/step_time.py must hold {min(errors):+.3f} to {max(errors):+.3f}.")


if __name__ == "__main__":
    main()
