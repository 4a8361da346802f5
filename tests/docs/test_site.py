"""The site is whole: it builds strictly, fetches nothing, and what is made from the code is all there."""

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml

from jaxlm.cli import main as cli
from jaxlm.config import iterate_keys
from jaxlm.corpus.raw.config import CorpusConfig
from jaxlm.runconfig import RunConfig

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import reference  # noqa: E402
import site_hook  # noqa: E402

BENGALI = re.compile(r"[\u0980-\u09ff]")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {"PATH": str(Path(sys.executable).parent), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def pages(site):
    return {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}


def test_the_site_builds_and_no_page_loads_anything_from_elsewhere(site):
    found = pages(site)
    assert {"index.html", "quickstart/index.html", "reference/commands/index.html"} <= set(found)
    loaded = (
        r"<(script|img|iframe|source)[^>]*\ssrc=\"?(https?:)?//|<link[^>]*stylesheet[^>]*href=\"?(https?:)?//"
    )
    assert [name for name, text in found.items() if re.search(loaded, text)] == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?https?://[^)\"']*", styles) == []


def test_every_page_of_the_site_is_in_its_navigation(site):
    nav = set(site_hook.pages_of_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert {*written, *reference.PAGES, *site_hook.FROM_ROOT} - nav == set()


def test_bengali_pages_say_their_language(site):
    found = pages(site)
    bengali = {name for name, text in found.items() if '<html lang="bn"' in text}
    assert bengali == {name for name in found if name.startswith("bn/")} != set()


def test_the_reference_has_every_command_and_every_flag():
    page = reference.commands()
    for name in cli.commands():
        assert f"{{#jaxlm-{name}}}" in page
        for parser in cli._parsers(cli.parser_of(name)):
            for action in parser._actions:
                for flag in action.option_strings:
                    assert flag in ("-h", "--help") or re.search(rf"(?<![\w-]){flag}(?![\w-])", page), (
                        f"{name} {flag}"
                    )


@pytest.mark.parametrize(("page", "kind"), [("config", RunConfig), ("corpus-config", CorpusConfig)])
def test_the_reference_has_every_key_with_what_it_means(page, kind):
    text = reference.PAGES[f"reference/{page}.md"]()
    for key in iterate_keys(kind):
        assert f"#### {reference.code(key.name)} {{#" in text
        assert key.doc or key.name in SELF_EXPLAINING, f"{key.name} has no docstring"


SELF_EXPLAINING = {
    "objective",
}
"""Keys whose name says it all."""


def test_the_reference_has_every_config_and_exit_code():
    assert all(f"{{#{path.stem}}}" in reference.configs() for path in (ROOT / "configs").glob("*.py"))
    assert all(f"| {number} |" in reference.exit_codes() for number in cli.EXIT_CODES)


def test_words_of_the_code_are_not_read_as_markup():
    assert reference.prose("a <name> of `x_*|` and *_y_*") == r"a &lt;name&gt; of `x_*|` and \*\_y\_\*"


@pytest.mark.parametrize("name", ["quickstart.md", "two-stages.md"])
def test_a_bengali_page_has_the_blocks_and_sections_of_the_english_one(name):
    english, bengali = ((ROOT / "docs" / folder / name).read_text() for folder in ("", "bn"))
    assert FENCE.findall(bengali) == FENCE.findall(english)
    assert len(re.findall("^#+ ", bengali, re.MULTILINE)) == len(re.findall("^#+ ", english, re.MULTILINE))
    assert bengali.count("\n| ") == english.count("\n| ")
    assert unicodedata.is_normalized("NFC", bengali)
    prose = re.sub(r"[^\w]", "", re.sub(r"`[^`]*`|\([^)]*\)", "", FENCE.sub("", bengali)))
    assert len(BENGALI.findall(prose)) > 0.6 * len(prose)


def test_a_page_that_is_not_written_yet_is_left_out_and_named(tmp_path):
    (tmp_path / "mkdocs.yml").write_text(
        "nav: [Home: index.md, {More: [a.md, {B: nowhere.md}]}, {C: [gone.md]}]"
    )
    missing = site_hook.missing_pages(tmp_path / "mkdocs.yml")
    assert missing == ["a.md", "nowhere.md", "gone.md"]
    nav = yaml.safe_load((tmp_path / "mkdocs.yml").read_text())["nav"]
    assert site_hook.without(nav, ["nowhere.md", "gone.md"]) == [
        {"Home": "index.md"},
        {"More": ["a.md"]},
        {"C": []},
    ]
