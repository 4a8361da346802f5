"""Compiles the configs of TPU pods for their pods, as their docstrings say, and prints one table: `make pods`.

    python bench/pods.py                                    all of them
    python bench/pods.py pretrain_llama2_7b_v5e256 ...      these
    python bench/pods.py --num-processes=1 --out=FOLDER     one at a time; the JSON of each is kept there

A config names its topology in its docstring, in a line `jaxlm compile --config=... --topology=...`: that is run.
What is in --out already is taken from there, so that a run that broke off goes on. The exit code is 1 where a step does
not fit or does not compile.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
HEADER = (
    "config",
    "topology",
    "GiB",
    "of",
    "roofline s",
    "hybrid s",
    "cycles s",
    "MFU",
    "wire GB",
    "bound",
    "took s",
)


def commands() -> dict[str, list[str]]:
    """Config -> the arguments of `jaxlm` that compile it for its pod."""
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        line = re.search(r"^ *jaxlm (compile --config=.*)$", words, re.MULTILINE)
        if line:
            found[path.stem] = shlex.split(line[1])
    return found


def compile_one(name: str, command: list[str], out: Path | None) -> tuple[str, dict | str]:
    """(name, the numbers of `jaxlm compile --json`; or why there are none)."""
    kept = None if out is None else out / f"{name}.json"
    if kept is not None and kept.exists():
        return name, json.loads(kept.read_text(encoding="utf-8"))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jaxlm", *command, "--json"], capture_output=True, text=True, check=False
    )
    if not done.stdout:
        return name, (done.stderr.strip().splitlines() or ["no output"])[-1]
    numbers = {**json.loads(done.stdout), "wall_s": time.perf_counter() - began}
    if kept is not None:
        kept.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    return name, numbers


def row_of(name: str, numbers: dict) -> tuple[str, ...]:
    """Cells of the table."""
    memory, topology, step, at = (numbers[key] for key in ("memory", "topology", "step", "time"))
    slices = f" x {topology['num_slices']}" if topology["num_slices"] > 1 else ""
    room = f"{memory['total_bytes'] / 2**30:.1f}", f"{memory['limit_bytes'] / 2**30:.1f}"
    if step is None:
        return (
            name,
            topology["name"] + slices,
            *room,
            "-",
            "-",
            "-",
            "-",
            "-",
            "no fit",
            f"{numbers['wall_s']:.0f}",
        )
    mfu = {speed["basis"]: speed["mfu"] for speed in numbers["speeds"]}["cycles"]
    wire = sum(row["wire_bytes"] for row in step["collectives"]) / 1e9
    seconds = (f"{at[key]:.3f}" for key in ("roofline_s", "hybrid_s", "cycles_s"))
    bound = at["bound"] if memory["fits"] else "NO FIT"
    return (
        name,
        topology["name"] + slices,
        *room,
        *seconds,
        f"{mfu:.1%}",
        f"{wire:.1f}",
        bound,
        f"{numbers['wall_s']:.0f}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="configs; default: all that name a topology")
    parser.add_argument("--num-processes", type=int, default=2, help="compilers at a time (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the JSON of each, which are not compiled again")
    args = parser.parse_args()
    known = commands()
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"{unknown[0]} is no config that names a topology: {', '.join(known)}")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    began, failed, rows = time.perf_counter(), [], [HEADER]
    with ThreadPoolExecutor(args.num_processes) as pool:
        asked = args.names or list(known)
        for name, numbers in pool.map(lambda name: compile_one(name, known[name], args.out), asked):
            if isinstance(numbers, str):
                print(f"{name}: {numbers}", file=sys.stderr, flush=True)
                failed.append(name)
                continue
            print(f"{name}: {numbers['wall_s']:.0f} s", file=sys.stderr, flush=True)
            rows.append(row_of(name, numbers))
            if not numbers["memory"]["fits"]:
                failed.append(name)
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
    print(f"{len(rows) - 1} steps compiled in {time.perf_counter() - began:.0f} s; they fit: {not failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
