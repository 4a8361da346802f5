"""Promises of the embedded sources: English prose, on every Python, always the same, and never run."""

import ast
import hashlib
import io
import re
import subprocess
import sys
import tokenize

import pytest

from jaxlm.corpus import embedded
from jaxlm.types import UserError

LEAST_BYTES = {"topics": 300_000, "docstrings": 1_000_000, "comments": 500_000, "licences": 10_000}


@pytest.mark.parametrize("name", embedded.NAMES)
def test_an_embedded_source_holds_enough_english_prose(name):
    texts = embedded.texts(f"embedded:{name}")
    assert sum(map(len, texts)) > LEAST_BYTES[name]
    assert len(texts) >= 5
    assert len(set(texts)) == len(texts)
    assert all(
        text.strip() and text.endswith("\n") and "\r" not in text and "\0" not in text for text in texts
    )
    words = " ".join(texts).lower().split()
    assert sum(words.count(word) for word in ("the", "of", "a", "to")) > len(words) / 20
    assert embedded.about_bytes(f"embedded:{name}") == pytest.approx(
        embedded.num_bytes(f"embedded:{name}"), rel=0.5
    )


def test_the_sources_hold_what_their_names_say():
    topics, docstrings, comments, licences = (embedded.texts(f"embedded:{name}") for name in embedded.NAMES)
    assert any("for" in text and "iterable" in text for text in topics)
    assert any(text.startswith("textwrap\n") and "textwrap.TextWrapper.wrap" in text for text in docstrings)
    assert any(text.startswith("textwrap\n") and "\n\nRecalculate" not in text for text in comments)
    assert any("PYTHON SOFTWARE FOUNDATION LICENSE" in text for text in licences)
    assert any(text.startswith(("Copyright", "The MIT License")) for text in licences)


def test_docstrings_inside_of_branches_are_found():
    source = """'of the module'
try:
    import x
except ImportError:
    def f():
        'of f'
        if f:
            class C:
                'of C'
"""
    found = list(embedded._docstrings_of(ast.parse(source), "m"))
    assert found == ["m\n\nof the module", "m.f\n\nof f", "m.f.C\n\nof C"]


def test_comments_are_sentences_on_lines_of_their_own():
    source = b"""# One block of
#   two lines
x = 1  # beside code
s =
    #: of another indentation
# and back
"""
    blocks = [text for text in embedded._comment_blocks(source) if text]
    assert blocks == ["One block of\n  two lines", "of another indentation", "and back"]
    assert embedded._is_prose("This is what the loop below does to the rest of it.")
    assert not embedded._is_prose("self.x = [f(a[i]) for i, _ in enumerate(b[::2])] + c[:-1] - {1, 2}")
    assert not embedded._is_prose("too short to tell")


@pytest.mark.parametrize(
    "source",
    [
        's = """text\n# of a string\n"""\n# of its own\n',
        "s = r'''it's \\'''\n# of a string\n'''\n# of its own\n",
        "s = '# of a string' \"it's\" '\\'# too'\n# it's of its own\n",
        "s = 'over \\\n# two lines'\n# of its own\n",
        's = """a"b""c\\"""\n# of a string"""\n# of its own\n',
        "s = f'{x!r:#>3}' rb'#'\n# of its own\n",
        "s = \"'''\"\n# of its own\nt = \"'''\"\n",
        "x = 1 + \\\n  2\n# of its own\n\t# and deeper\n",
        "# with\r\n# returns\r\ns = 1\r\n# of its own\r\n",
        "# -*- coding: latin-1 -*-\n# caf\xe9\n",
        "# without an end",
        "",
    ],
)
def test_comments_are_those_that_python_reads(source):
    """`tokenize` finds the same, but takes six times as long."""
    encoded = source.encode("latin-1")
    comments = [
        re.sub(r"^#+:? ?", "", token.string)
        for token in tokenize.tokenize(io.BytesIO(encoded).readline)
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
    ]
    blocks = [text for text in embedded._comment_blocks(encoded) if text]
    assert "\n".join(blocks) == "\n".join(comments)


def test_docstrings_come_from_the_library_itself_and_nothing_beside_it():
    modules = {text.split("\n", 1)[0].split(".")[0] for text in embedded.texts("embedded:docstrings")}
    assert {"json", "argparse", "asyncio"} <= modules
    assert not {"numpy", "pip", "pytest", "test", "idlelib", "_sysconfigdata"} & modules


@pytest.fixture(scope="module")
def elsewhere():
    """(hashes, seconds, modules imported) of reading all texts in a process with a hash seed of its own."""
    code = (
        "import hashlib, sys, time; from jaxlm.corpus import embedded as e; before = set(sys.modules)\n"
        "for name in e.NAMES:\n"
        "    source = f'embedded:{name}'\n"
        "    print(hashlib.sha256(repr(e.texts(source)).encode()).hexdigest(), e.fingerprint(source))\n"
        "print(time.process_time(), *sorted(set(sys.modules) - before))"
    )
    env = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    *hashes, rest = (line.split() for line in done.stdout.splitlines())
    seconds, *modules = rest
    return hashes, float(seconds), modules


def test_another_process_with_another_hash_seed_reads_the_same(elsewhere):
    """This process has a seed by chance."""
    for name, hashes in zip(embedded.NAMES, elsewhere[0], strict=True):
        texts = embedded.texts(f"embedded:{name}")
        assert hashes == [
            hashlib.sha256(repr(texts).encode()).hexdigest(),
            embedded.fingerprint(f"embedded:{name}"),
        ]


def test_nothing_of_the_library_is_imported_and_reading_is_quick(elsewhere):
    _, seconds, modules = elsewhere
    assert not {"antigravity", "this", "turtle", "tkinter", "pydoc_data.topics"} & set(modules)
    assert seconds < 10  # about 2; this guards against work that grows


def test_the_fingerprint_is_known_without_reading(monkeypatch):
    monkeypatch.setattr(embedded, "_docstrings", lambda: pytest.fail("the texts were read"))
    assert embedded.fingerprint("embedded:docstrings") != embedded.fingerprint("embedded:topics")


def test_a_python_without_its_licence_falls_back(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "_python_licences", lambda: iter(()))
    (tmp_path / "GPL-3").write_text("GNU GENERAL PUBLIC LICENSE")
    (tmp_path / "GPL").symlink_to("GPL-3")
    monkeypatch.setattr(embedded, "_COMMON_LICENCES", str(tmp_path))
    assert list(embedded._licences()) == ["GNU GENERAL PUBLIC LICENSE\n"]
    monkeypatch.setattr(embedded, "_COMMON_LICENCES", str(tmp_path / "nowhere"))
    assert any("Redistribution" in text or "Apache License" in text for text in embedded._licences())


def test_a_python_without_the_texts_is_named(monkeypatch):
    monkeypatch.setattr(embedded, "_topics", lambda: iter(()))
    embedded.texts.cache_clear()
    with pytest.raises(UserError, match="embedded:topics: this Python"):
        embedded.texts("embedded:topics")
    embedded.texts.cache_clear()


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="did you mean 'licences'"):
        embedded.texts("embedded:licenses")
