"""Renews docs/images/run-page.png and docs/images/playground.gif, in a headless Chromium.

    make screenshots                       the playground with runs/quickstart, trained first where it is not there
    python .ci/screenshots.py --run=runs/mine

Needs `pip install playwright` and a Chromium: $CHROMIUM, /usr/bin/chromium, or that of `playwright install chromium`.
The pages are opened on 127.0.0.1. `make files` refuses pictures above 500 kB, so they are made small enough.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_BYTES = 500_000
PICTURES = {"report-light.png": "run-page.png", "playground.gif": "playground.gif"}
"""What the scripts of report and playground make -> what README.md and the site show."""


def make_all(out_dir: Path, run_dir: Path) -> list[Path]:
    """Writes the pictures and returns their paths. Errors: SystemExit names one that is missing or too large."""
    sys.path.insert(0, str(ROOT / ".ci"))
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        importlib.import_module("screenshots_report").make(folder)
        importlib.import_module("screenshots_playground").make(folder, run_dir)
        for made, shown in PICTURES.items():
            if not (folder / made).exists():
                raise SystemExit(f"{made} was not made.")
            shutil.copy(folder / made, out_dir / shown)
    for path in [out_dir / shown for shown in PICTURES.values()]:
        if path.suffix == ".png" and path.stat().st_size > MAX_BYTES:
            shrink(path)
        if path.stat().st_size > MAX_BYTES:
            raise SystemExit(
                f"{path} has {path.stat().st_size:,} bytes; {MAX_BYTES:,} are the limit of `make files`."
            )
    return [out_dir / shown for shown in PICTURES.values()]


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
    for path in make_all(args.out, args.run):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
