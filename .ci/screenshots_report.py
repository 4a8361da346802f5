"""Pictures of the page of runs, in a headless Chromium: light, dark, several runs, a phone.

    python .ci/screenshots_report.py OUT_DIR

The runs never were: bench/synthetic_run.py writes their logs, so that nothing is trained and every picture comes out
the same. For `make screenshots`: make(out_dir) -> the files.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
NUM_STEPS = 20_000
SHOTS = {
    "report-light": ("one", {"width": 1280, "height": 1120}, "light", False),
    "report-dark": ("one", {"width": 1280, "height": 1120}, "dark", False),
    "report-whole": ("one", {"width": 1280, "height": 1120}, "light", True),
    "report-runs": ("three", {"width": 1280, "height": 1120}, "light", False),
    "report-runs-whole": ("three", {"width": 1280, "height": 1120}, "dark", True),
    "report-phone": ("one", {"width": 390, "height": 844}, "light", False),
}
"""Name -> (page, size in pixels, colours, whether all of the page)."""


def make(out_dir: Path) -> list[Path]:
    """Writes the PNGs. Errors: AssertionError when a page has an error, or asks for anything outside."""
    from playwright.sync_api import sync_playwright
    from report import find_chromium
    from synthetic_run import write_run, write_scores

    from jaxlm.cli.main import main

    out_dir.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        runs = [
            write_run(Path(folder) / "llama-8b", NUM_STEPS),
            write_run(Path(folder) / "llama-8b-lr6e-4", NUM_STEPS, seed=1, learning_rate=6e-4, restarts=1),
            write_run(
                Path(folder) / "llama-8b-lr1e-4", NUM_STEPS, seed=2, learning_rate=1e-4, finished=False
            ),
        ]
        write_scores(runs[0])
        pages = {"one": runs[:1], "three": runs}
        for name, shown in pages.items():
            assert main(["report", *map(str, shown), f"--html={folder}/{name}.html"]) == 0
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        for name, (page, size, colours, whole) in SHOTS.items():
            tab = browser.new_page(viewport=size, color_scheme=colours)
            problems: list[str] = []
            tab.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
            tab.on("console", lambda said, problems=problems: problems.append(said.text))
            tab.goto(Path(folder, f"{page}.html").as_uri())
            tab.wait_for_selector("html[data-drawn=all]", state="attached", timeout=120_000)
            written.append(out_dir / f"{name}.png")
            tab.screenshot(path=written[-1], full_page=whole)
            assert not problems, problems
            tab.close()
        browser.close()
    return written


if __name__ == "__main__":
    for path in make(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots")):
        print(path)
