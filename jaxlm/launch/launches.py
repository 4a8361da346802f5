"""What is launched: files and commands, which are printed as a script that could be pasted, or executed one by one."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

END = "JAXLM_END"
_MOST_ON_A_LINE = 100


class File(NamedTuple):
    """Written before the commands run."""

    path: str
    content: str


class Command(NamedTuple):
    """One program that is started on this machine."""

    why: str
    """In words, for the script and for errors."""
    argv: tuple[str, ...]
    stdin: str | None = None
    """What the program reads; None: nothing."""
    is_watch: bool = False
    """Whether its output is for the user to see as it comes, until it or the user ends."""


class Wait(NamedTuple):
    """A command that is repeated until it prints `until`, or one of `failures`."""

    why: str
    argv: tuple[str, ...]
    until: str
    failures: tuple[str, ...]
    every_s: int


class Launch(NamedTuple):
    """All that one call of `jaxlm launch` does."""

    platform: str
    about: tuple[str, ...]
    """What it is, for people: a line each."""
    files: tuple[File, ...] = ()
    commands: tuple[Command | Wait, ...] = ()
    manifest: str | None = None
    """The one document that describes the job, where the platform has such a thing."""


def render(launch: Launch) -> str:
    """A bash script that does the same."""
    about = (f"# {' '.join(line.split())}" for line in launch.about)  # a line break would end the comment
    lines = ["#!/usr/bin/env bash", *about, "set -euo pipefail"]
    for file in launch.files:
        lines += ["", *here_document(f"cat > {shlex.quote(file.path)}", file.content)]
    for command in launch.commands:
        lines += ["", f"# {command.why}"]
        if isinstance(command, Wait):
            lines += _loop(command)
        elif command.stdin is not None:
            lines += here_document(shell_line(command.argv), command.stdin)
        else:
            lines.append(shell_line(command.argv))
    return "\n".join(lines) + "\n"


def shell_line(argv: Sequence[str]) -> str:
    """A command, every word quoted that needs it; a long one has a flag on each line."""
    words = [shlex.quote(word) for word in argv]
    line = " ".join(words)
    if len(line) <= _MOST_ON_A_LINE:
        return line
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return " \\\n  ".join([" ".join(words[:first]), *words[first:]])


def here_document(line: str, content: str) -> list[str]:
    """Lines of a command that reads the content, which the shell leaves as it is."""
    end = END
    while end in content.splitlines():
        end += "_"
    return [f"{line} <<'{end}'", *content.removesuffix("\n").split("\n"), end]


def _loop(wait: Wait) -> list[str]:
    failures = "|".join(wait.failures)
    return [
        "while true; do",
        f"  state=$({' '.join(shlex.quote(word) for word in wait.argv)})",
        '  echo "$state"',
        '  case "$state" in',
        f"    {wait.until}) break ;;",
        f"    {failures}) exit 1 ;;",
        "  esac",
        f"  sleep {wait.every_s}",
        "done",
    ]


def exports(environment: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of a shell script that set variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment]
