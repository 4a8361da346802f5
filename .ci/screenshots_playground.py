"""Pictures of the playground for the README: `python .ci/screenshots_playground.py OUT_DIR RUN_DIR`.

OUT_DIR gets playground-1.png and on (a prompt, its distribution, picks one after the other, with settings that filter),
playground.gif made of them, and playground-dark.png. Needs a Chromium, as the tests do ($CHROMIUM, or on the path).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROMPT, WORDS = "The function returns", "a, the, list"
SIZE = {"width": 1080, "height": 1180}
FRAME_MS, LAST_FRAME_MS = 1400, 3000


def make(out_dir: str | os.PathLike, run_dir: str | os.PathLike) -> list[Path]:
    """Starts the playground of a run, takes the pictures, ends it; returns their paths.

    Errors: RuntimeError where there is no Chromium, or the playground does not start.
    """
    from playwright.sync_api import sync_playwright

    named = os.environ.get("CHROMIUM")
    path = shutil.which(named) if named else next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        raise RuntimeError("no Chromium is installed: put one on the path, or its path into $CHROMIUM")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "jaxlm", "playground", f"--run={run_dir}", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next((one for one in process.stdout if one.startswith("playground: ")), None)
        if line is None:
            raise RuntimeError("the playground did not start; what it said is above")
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=path, args=flags)
            page = browser.new_page(viewport=SIZE)  # pyright: ignore[reportArgumentType]
            page.goto(line.split()[1])
            made = take(page, out)
            browser.close()
    finally:
        process.terminate()
        process.wait(30)
    made.append(animate(made[:-1], out / "playground.gif"))
    return made


def take(page: Any, out: Path) -> list[Path]:
    """The numbered pictures, and the last of them in the dark."""
    made: list[Path] = []

    def shot(name: str = "") -> None:
        page.wait_for_timeout(400)
        page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
        made.append(out / f"playground-{name or len(made) + 1}.png")
        page.screenshot(path=made[-1])

    picked = page.locator(".chip.picked")
    page.get_by_label("Prompt").first.fill(PROMPT)
    page.get_by_label("Candidate words").fill(WORDS)
    page.get_by_label("Rows").first.fill("8")
    shot()
    page.get_by_role("button", name="Show what comes next").click()
    page.locator("#panel-next button.bar").first.wait_for(timeout=120_000)
    shot()
    page.locator("#temperature").fill("0.7")
    page.locator("#top_p").fill("0.8")
    page.locator("#panel-next .bar.out").first.wait_for(timeout=120_000)
    shot()
    for number in range(3):
        page.get_by_role("button", name="Pick the sampled one").click()
        picked.nth(number).wait_for(timeout=120_000)
        page.locator("#panel-next button.stop").wait_for(state="hidden")
        shot()
    page.locator("#panel-next button.bar").nth(1).click()
    picked.nth(3).wait_for(timeout=120_000)
    page.locator("#panel-next button.stop").wait_for(state="hidden")
    shot()
    page.get_by_role("button", name="Next", exact=True).click()
    page.locator("#panel-next button.stop").wait_for(state="hidden", timeout=120_000)
    shot()
    page.emulate_media(color_scheme="dark")
    shot("dark")
    return made


def animate(frames: list[Path], path: Path) -> Path:
    """One GIF of the pictures, the last shown longer."""
    from PIL import Image

    pictures = [
        Image.open(frame).convert("RGB").resize((SIZE["width"] * 3 // 4, SIZE["height"] * 3 // 4))
        for frame in frames
    ]
    palette = [picture.quantize(96, dither=Image.Dither.NONE) for picture in pictures]
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    palette[0].save(path, save_all=True, append_images=palette[1:], duration=times, loop=0, optimize=True)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(*make(sys.argv[1], sys.argv[2]), sep="\n")
