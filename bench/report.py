"""The page of a run: how long it takes to build from a log of 100,000 steps, and to open in Chromium.

    python bench/report.py [--steps=100000] [--runs=1]

Building is measured as a user has it: `jaxlm report RUN`, a process of its own. Opening: from the navigation until the
curves in sight are drawn, and until all are; in a headless Chromium without a GPU (playwright, of the extra dev).
Nothing is cached between the tries; each figure is the median of three. Beside the times stand those of the CPU (of the
page: of the main thread of its process), which a machine that does other things besides changes less.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from synthetic_run import write_run

TRIES = 3
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def find_chromium() -> str | None:
    """The browser of this machine; None: playwright's own."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


def child_cpu_s() -> float:
    """Of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def build(runs: list[Path], page: Path) -> tuple[float, float]:
    """Seconds of `jaxlm report`: on the clock, and of the CPU."""
    begun, cpu_s = time.perf_counter(), child_cpu_s()
    command = [sys.executable, "-m", "jaxlm", "report", *map(str, runs), f"--html={page}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun, child_cpu_s() - cpu_s


def opened(browser, page: Path) -> tuple[float, float, float]:
    """Seconds until the first chart is drawn, until all are, and of the CPU until then."""
    tab = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    devtools = tab.context.new_cdp_session(tab)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    begun = time.perf_counter()
    tab.goto(page.as_uri(), wait_until="commit")
    tab.wait_for_selector(".plot svg .scatterlayer .trace", state="attached", timeout=120_000)
    first = time.perf_counter() - begun
    tab.wait_for_selector("html[data-drawn=all]", state="attached", timeout=120_000)
    everything = time.perf_counter() - begun
    metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
    tab.context.close()
    return first, everything, metrics["TaskDuration"]


def show(what: str, values: list[float]) -> None:
    """One line."""
    print(f"{what:<24}{statistics.median(values):6.2f} s   ({', '.join(f'{value:.2f}' for value in values)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        runs = [write_run(Path(folder) / f"run{i}", args.steps, seed=i) for i in range(args.runs)]
        page = Path(folder) / "page.html"
        size = sum((run / "events.jsonl").stat().st_size for run in runs)
        print(
            f"{args.runs} run(s) of {args.steps:,} steps, {size / 1e6:.0f} MB of logs; load {os.getloadavg()[0]:.1f}"
        )
        times = [build(runs, page) for _ in range(TRIES)]
        show("built after", [one[0] for one in times])
        show("  CPU of that", [one[1] for one in times])
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
            found = [opened(browser, page) for _ in range(TRIES)]
            browser.close()
        for i, what in enumerate(("first curve drawn after", "all curves drawn after", "  CPU of that")):
            show(what, [one[i] for one in found])
        print(f"{page.stat().st_size / 1e6:.1f} MB of HTML")
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
