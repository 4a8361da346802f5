"""Seconds from starting `jaxlm plan` to its answer, beside the limit of one second: `python bench/planner.py`.

Each command is a process of its own, several times over; the median counts, and what Python itself takes is said.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT_S = 1.0
COMMANDS = (
    "plan --config=pretrain_llama2_7b_v5e256",
    "plan --config=pretrain_size:gpt3-175b --json",
    "plan pods --config=pretrain_llama31_8b_v6e256",
    "plan cost --scenarios=gpt3",
    "plan cost --published",
    "plan mixture gpt3 --max-epochs=2",
    "plan scaling --csv=chinchilla --flops=1e23 --bootstrap=20",
)


def median_s(command: list[str], times: int) -> float:
    """Wall time of a command, the median of several runs after one that warms the disk's cache."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main() -> None:
    print(f"an empty Python starts in {median_s([sys.executable, '-c', ''], 5):.2f} s")
    print(f"{'command':<62} {'s':>6} {'of 1 s':>7}")
    for command in COMMANDS:
        seconds = median_s([sys.executable, "-m", "jaxlm", *command.split()], 5)
        print(f"{'jaxlm ' + command:<62} {seconds:>6.2f} {seconds / LIMIT_S:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
