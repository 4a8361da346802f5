"""`jaxlm COMMAND ...`: finds the command, splits off its `--config` flags, and turns errors into exit codes.

A command is a module beside this one with `add_arguments(parser)` and `main(args, config_argv) -> int`; the
first line of its docstring is its help. Only the module of the command that runs is imported, and none needs
JAX before it starts to work: help and mistakes answer at once.

Exit codes: EXIT_CODES. Any other exception is a bug, and keeps its traceback.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

import jaxlm
from jaxlm import step_memory
from jaxlm.config import nearest
from jaxlm.config_flags import split_config_flags
from jaxlm.redact import printable, redact
from jaxlm.types import UserError

MAX_ERROR_CHARS = 4000
EXIT_CODES = {
    0: "done",
    1: "a bug of jaxlm's, with its traceback",
    2: "a mistake of the user's, in one line: the key, file or value, the rule, the way out",
    3: "done, but for records that could not be read; they are named",
    4: "compiled, but it does not fit; what would is said",
    5: "replayed, but what happened did not come again: other devices, or another version",
    75: "stood still for train.step_timeout_s, with stacks in the workdir, or lost another process; the same command "
    "goes on",
    130: "interrupted by Ctrl-C; a run has saved its step, and the same command goes on",
    141: "the reader of stdout left, as `| head` does",
    143: "ended by SIGTERM, as before a preemption; the step is saved, and the same command goes on",
}
"""Of every command."""
_HELP = """\
usage: jaxlm COMMAND [flags]

Pretrain and fine-tune language models in JAX.

commands:
{commands}

jaxlm COMMAND --help explains the flags of a command; jaxlm config --keys lists every key that
--config.KEY=VALUE can set; jaxlm --version prints versions.
"""


class _Parser(argparse.ArgumentParser):
    """Raises UserError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def commands() -> list[str]:
    """All of them, alphabetical."""
    modules = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return [path.stem.replace("_", "-") for path in modules if path.stem != "main"]


def help_line(name: str) -> str:
    """Of the help of a command; reads its module without importing it."""
    source = Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _help() -> str:
    names = commands()
    width = max(map(len, names))
    return _HELP.format(commands="\n".join(f"  {name:<{width}}  {help_line(name)}" for name in names))


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} missing")
    python = ".".join(map(str, sys.version_info[:3]))
    return f"jaxlm {jaxlm.__version__} (python {python}, {', '.join(found)})"


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _parsers(inner)


def _check_flags(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Names the nearest flag for an unknown one, before argparse expands it or complains of what it then misses."""
    known = {
        flag for inner in _parsers(parser) for action in inner._actions for flag in action.option_strings
    }
    for arg in argv:
        flag = arg.partition("=")[0]
        if arg == "--":
            return
        if arg.startswith("--") and flag not in known:
            match = nearest(flag, [*known, "--config"])
            hint = f"; did you mean {match}?" if match else f". See `{parser.prog} --help`."
            raise UserError(f"Unknown flag {flag}{hint}")


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command, without its `--config` flags (config_flags.py)."""
    module = _module(name)
    parser = _Parser(
        prog=f"jaxlm {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"jaxlm.cli.{name.replace('-', '_')}")


def parse(name: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(flags of a command, its `--config` flags). Errors: UserError names what is wrong with a flag."""
    parser = parser_of(name)
    config_argv, rest = split_config_flags(argv)
    _check_flags(parser, rest)
    return parser.parse_args(rest), config_argv


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if argv[0] == "--version":
        print(_versions())
        return 0
    name, known = argv[0], commands()
    if name not in known:
        match = nearest(name, known)
        hint = f"did you mean {match}?" if match else f"there are {', '.join(known)}."
        raise UserError(f"{name!r} is not a command of jaxlm; {hint}")
    return _module(name).main(*parse(name, argv[1:]))


def main(argv: list[str] | None = None) -> int:
    """Runs a command line (default: this process's) and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a model writes any character; a terminal may not have it
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"jaxlm: error: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxlm: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _one_line(message: str) -> str:
    """The message without secrets and control characters; what came from a file cannot fill the screen with it."""
    line = printable(" ".join(message.splitlines()))
    return line if len(line) <= MAX_ERROR_CHARS else f"{line[:MAX_ERROR_CHARS]} ... (cut off)"


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does it, without secrets."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def start() -> int:
    """`main` as a process of its own, which has its memory as training steps want it."""
    sys.excepthook = _print_traceback
    if sys.argv[1:2] == ["train"]:
        step_memory.begin(sys.orig_argv)
    return main()
