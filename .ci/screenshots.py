"""Renews docs/images/run-page.png and docs/images/playground.gif, in a headless Chromium.

    make screenshots                       of runs/quickstart, trained first where it is not there
    python .ci/screenshots.py --run=runs/mine

Both show a run that was trained: no number on them is made up. Further pictures, to be looked at and not published, go
to runs/screenshots: those of the run page are of logs that a program wrote, so that every panel has something to show.

Needs a Chromium: $CHROMIUM, or one on the path. The pages are opened on this machine. `make files` refuses what is
above 500 kB, so they are made small enough.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_BYTES = 500_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]


def make_all(out_dir: Path, run_dir: Path, others: Path) -> list[Path]:
    """Writes the two pictures and returns their paths. Errors: SystemExit names one that is missing or too large."""
    sys.path.insert(0, str(ROOT / ".ci"))
    out_dir.mkdir(parents=True, exist_ok=True)
    pictures = [out_dir / "run-page.png", out_dir / "playground.gif"]
    take_run_page(run_dir, pictures[0])
    importlib.import_module("screenshots_playground").make(others, run_dir)
    shutil.copy(others / "playground.gif", pictures[1])
    importlib.import_module("screenshots_report").make(others)
    for path in pictures:
        if path.suffix == ".png" and path.stat().st_size > MAX_BYTES:
            shrink(path)
        if path.stat().st_size > MAX_BYTES:
            raise SystemExit(
                f"{path} has {path.stat().st_size:,} bytes; {MAX_BYTES:,} are the limit of `make files`."
            )
    return pictures


def take_run_page(run_dir: Path, path: Path) -> None:
    """The top of the page that `jaxlm report` writes of a run."""
    from playwright.sync_api import sync_playwright

    named = os.environ.get("CHROMIUM", "chromium")
    chromium = shutil.which(named) or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit(f"{named} is not installed: put a Chromium on the path, or its path into $CHROMIUM.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_path = Path(folder, "page.html")
        command = [sys.executable, "-m", "jaxlm", "report", str(run_dir), f"--html={page_path}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 960})
        page.goto(page_path.as_uri())
        page.wait_for_timeout(1500)  # until the curves are drawn
        page.screenshot(path=path)
        browser.close()


def shrink(path: Path) -> None:
    """Saves a PNG with 256 colours, which is enough for a page of text and lines."""
    from PIL import Image

    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def main() -> int:
    """Trains the quickstart where there is no run, then makes the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=ROOT / "runs/quickstart")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    args = parser.parse_args()
    if not (args.run / "checkpoints").exists():
        command = [sys.executable, "-m", "jaxlm", "train", "--config=quickstart", f"--workdir={args.run}"]
        subprocess.run(command, check=True, cwd=ROOT)
    for path in make_all(args.out, args.run, ROOT / "runs/screenshots"):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
