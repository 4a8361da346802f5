"""Every `jaxlm` command in README.md, the docs and the configs' docstrings is one that the parser takes."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from jaxlm.cli import main as cli
from jaxlm.config import key_names
from jaxlm.corpus.raw.config import CorpusConfig
from jaxlm.runconfig import RunConfig
from jaxlm.types import UserError

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
COMMANDS = cli.commands()
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
_INLINE = re.compile(r"`(jaxlm [a-z][^`]*)`")


def split(line):
    """The commands of a line of shell, each as a list of words; none of what cannot be read as one."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    command = []
    try:
        for word in lexer:
            if set(word) <= set("|&;<>()"):
                yield command
                command = []
            else:
                command.append(word)
    except ValueError:
        return
    yield command


def commands(text):
    """(words, whether they stand in a sentence) of each command line of jaxlm in a page."""
    prose = _FENCE.sub("", text)
    blocks = [body for kind, body in _FENCE.findall(text) if kind in ("bash", "sh")] + _INDENTED.findall(
        prose
    )
    lines = [(line, False) for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    lines += [(" ".join(found.split()), True) for found in _INLINE.findall(prose)]
    for line, in_a_sentence in lines:
        line = re.sub(r"\s(?:\d?>>?\s*[^\s|&;]+|\.\.\.)", "", line)  # redirections, and "and so on"
        for words in split(line.strip()):
            if words[:1] == ["jaxlm"] and re.fullmatch("[a-z][a-z-]+", (words + [""])[1]):
                yield words[1:], in_a_sentence


def check(words):
    """Raises what is wrong with a command line."""
    name, argv = words[0], words[1:]
    if name not in COMMANDS:
        raise UserError(f"{name} is no command")
    if "--help" in argv or name.isupper():
        return
    _, config_argv = cli.parse(name, argv)
    known = key_names(CorpusConfig) if name == "corpus" or "--corpus" in argv else key_names(RunConfig)
    for flag in config_argv:
        key, _, value = flag.removeprefix("--").partition("=")
        if key == "config":
            name_of_config = value.partition(":")[0]
            if (
                re.fullmatch(r"[a-z0-9_]+", name_of_config)
                and not (ROOT / f"configs/{name_of_config}.py").exists()
            ):
                raise UserError(f"--config={value}: there is no configs/{name_of_config}.py")
            continue
        key = re.sub(r"^((?:data\.)?sources)\.\w+", r"\1.<name>", key.removeprefix("config."))
        if key not in known and not re.fullmatch(r"(data\.)?sources(\.<name>)?|[A-Z.]+", key):
            raise UserError(f"--config.{key}: no such key")


def wrong(path, text):
    found = []
    for words, in_a_sentence in commands(text):
        try:
            check(words)
        except UserError as error:
            if not (in_a_sentence and re.search("required|expected", str(error))):  # only named there
                found.append(f"{path.name}: jaxlm {' '.join(words)}: {error}")
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_page_is_taken_by_the_parser(path):
    assert wrong(path, path.read_text(encoding="utf-8")) == []


def test_every_command_of_a_config_is_taken_by_the_parser():
    for path in CONFIGS:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert wrong(path, text) == []


def test_the_pages_have_commands():
    assert sum(1 for path in PAGES for _ in commands(path.read_text(encoding="utf-8"))) > 150


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("```bash\njaxlm trian --config=quickstart\n```\n", "trian is no command"),
        ("```bash\njaxlm generate --run=x \\\n    --promt=y\n```\n", "did you mean --prompt"),
        (
            "```bash\ntrue && jaxlm train --workdir=x --config=quikstart | cat\n```\n",
            "no configs/quikstart.py",
        ),
        (
            "Then `jaxlm train --config=quickstart --config.train.num_step=3 --workdir=x`.",
            "train.num_step: no such key",
        ),
        ("    jaxlm data shw --config=quickstart\n", "invalid choice"),
    ],
)
def test_a_mistake_in_a_page_is_found(line, words):
    (found,) = wrong(Path("page.md"), line)
    assert words in found
