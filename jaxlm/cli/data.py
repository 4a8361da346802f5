"""Show what a run will read, check that it is reproducible, measure the loader.

jaxlm data plan --config=quickstart                    tokens and epochs of each source
jaxlm data hash --config=quickstart --processes=4      a hash per step; the same for 1, 2 and 4 processes
jaxlm data bench --config=quickstart                   tokens/s of the loader alone
jaxlm data show --config=instruct_smoke -n 3           records as they are trained on (instruct, classify)
"""

from __future__ import annotations

import argparse
import time

from jaxlm.types import UserError

MAX_ROWS = 1 << 60
"""Rows of a run are numbered in 64 bits."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `plan`, `hash`, `bench` and `show` with their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{plan,hash,bench,show}")
    actions.add_parser("plan", help="tokens and epochs planned of each source")
    hashes = actions.add_parser(
        "hash", help="hash of the batch of each step; the same for any number of processes"
    )
    hashes.add_argument("--start", type=int, default=0, metavar="STEP", help="first step (default: 0)")
    hashes.add_argument("--num-steps", type=int, default=5, metavar="N", help="steps to show (default: 5)")
    hashes.add_argument("--processes", type=int, default=1, metavar="P",
                        help="compute each batch in P parts, as P processes would (default: 1)")  # fmt: skip
    bench = actions.add_parser("bench", help="tokens/s of the loader alone, and its share of a plain copy")
    bench.add_argument("--num-steps", type=int, default=200, metavar="N", help="batches (default: 200)")
    show = actions.add_parser("show", help="records as they are trained on, and how many tokens of them are")
    show.add_argument(
        "-n", "--num", type=int, default=5, metavar="N", help="records of each source (default: 5)"
    )
    show.add_argument("--split", choices=["train", "eval"], default="train", help="default: train")
    show.add_argument("--html", metavar="FILE", help="write a page instead of colours on the terminal")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm data ACTION --config=...`."""
    if getattr(args, "num_steps", 1) < 1:
        raise UserError(f"--num-steps={args.num_steps} must be at least 1.")
    if getattr(args, "num", 1) < 1:
        raise UserError(f"--num={args.num} must be at least 1.")
    if getattr(args, "start", 0) < 0:
        raise UserError(f"--start={args.start} must not be negative: steps count from 0.")
    from jaxlm import run

    cfg = run.resolve(run.parse(config_argv))
    if args.action == "show":
        from jaxlm.cli._data_show import show

        return show(cfg, args.num, args.split, args.html)
    if args.action == "hash":
        _check_processes(args.processes, cfg.data.global_batch_size)
        if (args.start + args.num_steps) * cfg.data.global_batch_size >= MAX_ROWS:
            raise UserError(f"--start={args.start} is beyond the last row that can be numbered: lower it.")
    start = time.perf_counter()
    opened = run.open_data(cfg, quiet=args.action == "hash")  # its lines can be compared as they are
    rows = run.make_rows(cfg, opened)
    if args.action == "plan":
        return _plan(rows, cfg.train.num_steps)
    if args.action == "hash":
        return _hash(rows, args.start, args.num_steps, args.processes)
    return _bench(rows, time.perf_counter() - start, args.num_steps)


def _check_processes(processes: int, batch_size: int) -> None:
    from jaxlm.config import divisors

    if processes < 1 or batch_size % processes:
        raise UserError(
            f"--processes={processes} must divide data.global_batch_size={batch_size}: each process reads as "
            f"many rows. Choose from {divisors(batch_size)}."
        )


def _plan(rows, num_steps: int) -> int:
    plan = rows.plan(num_steps)
    data = rows.data
    print(
        f"{plan.num_steps:,} steps x {data.global_batch_size} x {data.seq_len} tokens, {data.packing}: "
        f"{sum(source.planned_tokens for source in plan.sources):,} trained tokens"
    )
    print(plan.table())
    for note in plan.notes:
        print(f"note: {note}")
    return 0


def _hash(rows, start: int, num_steps: int, processes: int) -> int:
    import numpy as np

    from jaxlm.data.pipeline import batch_hash

    parts = np.split(np.arange(rows.data.global_batch_size), processes)
    for step in range(start, start + num_steps):
        batches = [rows.batch(step, row_ids) for row_ids in parts]
        fingerprints = np.concatenate([batch["fingerprint"] for batch in batches])
        counts = np.bincount(
            np.concatenate([batch["source"] for batch in batches]), minlength=len(rows.names)
        )
        drawn = ", ".join(f"{name} {count}" for name, count in zip(rows.names, counts.tolist()) if count)
        print(f"step {step}  {batch_hash(fingerprints):08x}  rows: {drawn}")
    return 0


def _bench(rows, opened_s: float, num_steps: int) -> int:
    from jaxlm.data.speed import measure_loader

    data = rows.data
    print(
        f"batch        {data.global_batch_size} x {data.seq_len} tokens, {data.packing}, sources "
        f"{', '.join(rows.names)}; opened in {opened_s:.3f} s"
    )
    for line in measure_loader(rows, num_steps).lines():
        print(line)
    return 0
