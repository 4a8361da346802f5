"""Runs the tutorials of docs/tutorials as a reader would, and compares what the pages show with what is printed.

    python .ci/tutorials.py                     all of them, in the order of the navigation
    python .ci/tutorials.py pod                 one; those that it names as `needs` in its front matter run first

Of a page, from top to bottom, in one folder for all:

- a Python block with a title is written to the file of that name;
- a bash block is run, and has to succeed, without a network for Hugging Face;
- a text block stands for what the bash block above it writes to stdout. A line `...` stands for any lines, and `...`
  within one for anything. In a block ```{.text .measured} numbers, and bars of #, may be others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "docs/tutorials"
ORDER = ("pretrain", "continue", "instruct", "classify", "corpus", "hugging-face", "pod")
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


class Failed(Exception):
    """A place in a page, and what was not as it says."""


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    """bash, file, text or measured."""
    body: str
    place: str
    """page.md:line"""
    title: str = ""


def blocks(path: Path) -> Iterator[Block]:
    """The blocks of a page that mean something to the runner, in order."""
    text = path.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        place = f"{path.name}:{text.count(chr(10), 0, match.start()) + 1}"
        info = match["info"].strip()
        title = re.search(r'title="([^"]+)"', info)
        if info == "bash":
            yield Block("bash", match["body"], place)
        elif info == "text":
            yield Block("text", match["body"], place)
        elif info == "{.text .measured}":
            yield Block("measured", match["body"], place)
        elif info.startswith(("python", "jinja")) and title:
            yield Block("file", match["body"], place, title[1])


def needs(path: Path) -> list[str]:
    """Names of the tutorials that have to run before this one."""
    found = re.match(r"---\nneeds: ([\w, -]+)\n---\n", path.read_text(encoding="utf-8"))
    return found[1].split(", ") if found else []


def with_needed(names: list[str], folder: Path = FOLDER) -> list[str]:
    """The tutorials, each behind those that it needs, each once."""
    found: list[str] = []
    for name in names:
        before = with_needed(needs(folder / f"{name}.md"), folder)
        found += [one for one in [*before, name] if one not in found]
    return found


def pattern(block: Block) -> re.Pattern:
    """What the output has to contain."""
    lines = []
    for line in block.body.rstrip("\n").split("\n"):
        if line.strip() == "...":
            lines.append(r"(?:.*\n)*?")
            continue
        words = [_word(word, block.kind == "measured") for word in line.split()]
        lines.append(r"[ \t]*" + r"[ \t]+".join(words) + r"[ \t]*\n")
    return re.compile("^" + "".join(lines), re.MULTILINE)


def _word(word: str, measured: bool) -> str:
    if measured and set(word) == {"#"}:
        return "#+"
    number = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
    parts = re.split(rf"(\.\.\.|{number})" if measured else r"(\.\.\.)", word)
    return "".join(
        re.escape(part) if index % 2 == 0 else r".*?" if part == "..." else number
        for index, part in enumerate(parts)
    )


def run(path: Path, folder: Path, environ: dict[str, str]) -> None:
    """Runs one page in a folder. Errors: Failed names the block."""
    printed = ""
    for block in blocks(path):
        if block.kind == "file":
            (folder / block.title).write_text(block.body, encoding="utf-8")
        elif block.kind == "bash":
            began = time.monotonic()
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.body],
                cwd=folder,
                env=environ,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
                raise Failed(f"{block.place}: exit code {done.returncode}\n{block.body}\n{tail}")
            print(f"  {block.place}: {time.monotonic() - began:.1f} s", flush=True)
            printed = done.stdout
        elif not pattern(block).search(printed if printed.endswith("\n") else printed + "\n"):
            raise Failed(f"{block.place}: the page shows\n{block.body}\nbut what is printed is\n{printed}")


def environment(folder: Path) -> dict[str, str]:
    """That of a new user: this Python's commands, an empty cache, no secrets, nothing from the hub."""
    bin_folder = str(Path(sys.executable).parent)
    environ = {
        name: os.environ[name]
        for name in ("PATH", "LANG", "TERM", "TMPDIR", "XLA_FLAGS")
        if name in os.environ
    }
    environ |= {
        "PATH": f"{bin_folder}:{environ['PATH']}",
        "HOME": str(folder),
        "JAXLM_CACHE": str(folder / ".cache"),
    }
    return environ | {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}


def main() -> int:
    """Runs the tutorials that are named, or all; 1 where one does not do what it says."""
    names = sys.argv[1:] or list(ORDER)
    unknown = [name for name in names if name not in ORDER]
    if unknown:
        print(f"There is no tutorial {', '.join(unknown)}; there are {', '.join(ORDER)}.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="jaxlm-tutorials-") as temporary:
        folder = Path(temporary) / "here"
        folder.mkdir()
        environ = environment(Path(temporary))
        began = time.monotonic()
        for name in with_needed(names):
            print(name, flush=True)
            try:
                run(FOLDER / f"{name}.md", folder, environ)
            except Failed as failed:
                print(f"tutorials: {failed}", file=sys.stderr)
                return 1
    print(f"tutorials: all did what they say, in {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
