"""The pages of the site that are made from the code: PAGES, path -> function that returns Markdown. Imports no JAX."""

from __future__ import annotations

import argparse
import ast
import html
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jaxlm.cli import main as cli
from jaxlm.config import Key, iterate_keys
from jaxlm.report.names import EVENTS, METRICS

ROOT = Path(__file__).parents[1]
COMMANDS = """\
# Commands

`jaxlm --help` lists them; this page is made from the same parsers. How a command ends is its
[exit code](exit-codes.md).
"""
CONFIGS = """\
# Configs

What `--config=NAME` finds without a path. Each file is short, says what makes this run differ, and begins with its
command, its hardware and what was measured. Copy one to make your own, and give its path: `--config=my_run.py`.
"""
EVENT_LOG = """\
# Event log and metrics

`events.jsonl` in the workdir has one JSON object a line, only ever appended to:

```json
{{"event": "step", "time_s": 1763971200.25, "step": 10, "train/loss": 6.2541823387145996}}
```

`time_s` is Unix time. Floats give back the same bits. NaN and infinities are written as null and named in
`nonfinite`. The writers of TensorBoard, W&B and MLflow (`report.writers`) get the same metrics under the same names.

## Events

| `event` | when, and its own keys |
|---|---|
{words}
## Metrics

Of the events `step` and `eval`.

| key | meaning |
|---|---|
{metrics}"""


def prose(text: str) -> str:
    """Text of the code as Markdown: what is between backticks stays, what Markdown or HTML would read does not."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part if index % 2 else re.sub(r"([*_\[\]#|])", r"\\\1", html.escape(part, quote=False))
        for index, part in enumerate(parts)
    )


def code(text: object) -> str:
    """A span of code in a line or table."""
    return "<code>" + html.escape(str(text), quote=False).replace("|", "&#124;") + "</code>"


def commands() -> str:
    """Every command with its flags, as `--help` says them."""
    lines = [COMMANDS, "| command | |", "|---|---|"]
    known = cli.commands()
    lines += [
        f"| [{code(f'jaxlm {name}')}](#jaxlm-{name}) | {prose(cli.help_line(name))} |" for name in known
    ]
    for name in known:
        lines += ["", *_command(cli.parser_of(name), f"jaxlm {name}", 2)]
    return "\n".join(lines) + "\n"


def _command(parser: argparse.ArgumentParser, name: str, level: int) -> Iterator[str]:
    anchor = name.replace(" ", "-")
    yield f"{'#' * level} {code(name)} {{#{anchor}}}"
    yield ""
    first, _, rest = (parser.description or "").strip().partition("\n")
    if first:
        yield from (prose(first), "")
    if rest.strip():
        yield from ("```text", rest.strip("\n"), "```", "")
    formatter = parser.formatter_class(prog=parser.prog)
    subcommands = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {one.dest: one.help or "" for one in action._choices_actions}
            subcommands += [(inner, helps.get(inner, ""), one) for inner, one in action.choices.items()]
        elif not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
            words = formatter._expand_help(action) if action.help else ""
            yield from (_flag(action), f":   {prose(words) or '(see above)'}", "")
    for inner, words, one in subcommands:
        if not one.description:
            one.description = words
        yield from _command(one, f"{name} {inner}", min(level + 1, 6))


def _flag(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    values = _values(action)
    if not action.option_strings:
        return code(values)
    if action.nargs == 0:
        return code(names)
    return code(f"{names}={values}" if values else names)


def _values(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _sections(keys: Iterable[Key]) -> Iterator[tuple[str, list[Key]]]:
    found: dict[str, list[Key]] = {}
    for key in keys:
        found.setdefault(key.name.rpartition(".")[0], []).append(key)
    yield from found.items()


def _keys(title: str, intro: str, kind: type) -> str:
    lines = [f"# {title}", "", intro]
    for section, keys in _sections(iterate_keys(kind)):
        lines += ["", f"## {code(section) if section else 'The run'}", ""]
        for key in keys:
            name = key.spec.type.__name__ + (" or None" if key.spec.optional else "")
            anchor = re.sub(r"[<>]", "", key.name)
            default = "unset" if key.default is None else repr(key.default)
            lines += [f"#### {code(key.name)} {{#{anchor}}}", "", f"*{name}*, default: {code(default)}", ""]
            lines += [prose(key.doc), ""] if key.doc else []
    return "\n".join(lines) + "\n"


def config_keys() -> str:
    """Every key of a run."""
    from jaxlm.runconfig import RunConfig

    return _keys(
        "Keys of a run",
        "Each is set in a config file (`cfg.data.seq_len = 1024`) or by a flag (`--config.data.seq_len=1024`; "
        "`--config.data.sources.mine.path=FILE` adds a source called `mine`; `=None` unsets what may be unset). "
        "`jaxlm config --keys` prints this list, `jaxlm config --config=NAME` the values of a config.",
        RunConfig,
    )


def corpus_keys() -> str:
    """Every key of a corpus."""
    from jaxlm.corpus.raw.config import CorpusConfig

    return _keys(
        "Keys of a corpus",
        "Of configs for [`jaxlm corpus build`](../corpus.md), such as `corpus_gpt3_like`. "
        "`jaxlm config --corpus --keys` prints this list.",
        CorpusConfig,
    )


def configs() -> str:
    """The configs that come with jaxlm, with their docstrings and sources."""
    lines = [CONFIGS]
    for path in sorted((ROOT / "configs").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        words = ast.get_docstring(ast.parse(source)) or ""
        listing = [f"    {line}".rstrip() for line in ("```python", *source.splitlines(), "```")]
        lines += ["", f"## {code(path.stem)} {{#{path.stem}}}", "", _docstring(words), ""]
        lines += [f'??? note "configs/{path.name}"', "", *listing]
    return "\n".join(lines) + "\n"


def _docstring(text: str) -> str:
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(
        "```bash\n" + re.sub(r"^    ", "", block, flags=re.MULTILINE) + "\n```"
        if block.startswith("    ")
        else prose(block)
        for block in blocks
    )


def exit_codes() -> str:
    """How a command ends."""
    rows = "".join(f"| {number} | {prose(words)} |\n" for number, words in cli.EXIT_CODES.items())
    return (
        "# Exit codes\n\nOf every command; scripts and supervisors can rely on them. With 75, 130 and 143 the same "
        f"command goes on where the run ended.\n\n| code | meaning |\n|---|---|\n{rows}"
    )


def events() -> str:
    """The event log."""
    words = "".join(f"| {code(name)} | {prose(meaning)} |\n" for name, meaning in EVENTS.items())
    metrics = "".join(f"| {code(name)} | {prose(meaning)} |\n" for name, meaning in METRICS.items())
    return EVENT_LOG.format(words=words, metrics=metrics)


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/config.md": config_keys,
    "reference/corpus-config.md": corpus_keys,
    "reference/configs.md": configs,
    "reference/exit-codes.md": exit_codes,
    "reference/events.md": events,
}
