"""Text files: what is cut off a book, where its chapters begin, and how its characters are read."""

import gzip

import pytest

from jaxlm.corpus.raw.books import read_text_files
from jaxlm.corpus.raw.chapters import chapters
from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
from jaxlm.types import UserError


def read(path, content, *, compression="", strict=False, **options):
    path.write_bytes(content)
    file = RawFile(str(path), path.name, "text", compression, len(content), "")
    account = Account(strict=strict)
    return list(read_text_files(RawPart(file, 0, len(content)), RawOptions(**options), account)), account


LONG = "It was a long day, and the rain did not stop before the evening came over the hills. " * 3

NEW_BOOK = f"""\
The Project Gutenberg eBook of The Sea, by Ann Author

This eBook is for the use of anyone anywhere in the United States and
most other parts of the world at no cost and with almost no restrictions
whatsoever. You may copy it, give it away or use it under the terms
of the Project Gutenberg License included with this eBook.

Title: The Sea
       A Tale of the North

Author: Ann Author

Release Date: May 3, 2008 [eBook #1234]
[Most recently updated: June 1, 2021]

Language: English

Character set encoding: UTF-8

Produced by: A. Helper and the Online Distributed Proofreading Team

*** START OF THE PROJECT GUTENBERG EBOOK THE SEA, A TALE OF
THE NORTH ***




Produced by A. Helper, B. Helper, and the Online
Distributed Proofreading Team at http://www.pgdp.net

[Transcriber's Note: Spelling was kept.

Italics are marked _thus_.]



  THE SEA

by Ann Author

CONTENTS

CHAPTER I. The Ship

CHAPTER II. The Storm

PREFACE

This is the preface. {LONG}

CHAPTER I.

The Ship

A first chapter. {LONG}

Chapter 5 of this log was lost,
and nobody ever found it again in
all those years.

CHAPTER II. The Storm

A second chapter.
It ends. {LONG}

THE END

[Transcriber's Notes: Two commas were added.]

End of Project Gutenberg's The Sea, by Ann Author

*** END OF THE PROJECT GUTENBERG EBOOK THE SEA ***

Updated editions will replace the previous one.
*** START: FULL LICENSE ***
"""

FRONT = f"""\
  THE SEA

by Ann Author

CONTENTS

CHAPTER I. The Ship

CHAPTER II. The Storm

PREFACE

This is the preface. {LONG}"""
CHAPTER_1 = f"""\
CHAPTER I.

The Ship

A first chapter. {LONG}

Chapter 5 of this log was lost,
and nobody ever found it again in
all those years."""
CHAPTER_2 = f"""\
CHAPTER II. The Storm

A second chapter.
It ends. {LONG}

THE END"""


def test_a_book_loses_header_licence_and_transcribers(tmp_path):
    (document,), account = read(tmp_path / "pg1234.txt", NEW_BOOK.encode())
    expected = f"{FRONT}\n\n{CHAPTER_1}\n\n{CHAPTER_2}"
    start = NEW_BOOK.index("  THE SEA\n")
    assert document == RawDocument(
        text=expected,
        id="pg1234.txt",
        file="pg1234.txt",
        offset=start,
        num_bytes=len(expected),
        date="2008-05-03",
        licence="Project Gutenberg License",
        title="The Sea A Tale of the North",
        author="Ann Author",
        language="en",
    )
    assert account.changed == {"gutenberg": 1}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_its_chapters_are_those_of_the_text_and_not_of_the_contents(tmp_path, newline):
    content = NEW_BOOK.replace("\n", newline).encode()
    documents, _ = read(tmp_path / "pg1234.txt", content, document="chapter")
    assert [d.text.rstrip() for d in documents] == [FRONT.rstrip(), CHAPTER_1, CHAPTER_2]
    assert [d.id for d in documents] == ["pg1234.txt#1", "pg1234.txt#2", "pg1234.txt#3"]
    for document in documents:
        there = content[document.offset : document.offset + document.num_bytes].decode()
        assert there.replace("\r\n", "\n").replace("\r", "\n").strip("\n") == document.text


OLD_BOOK = """\
***The Project Gutenberg Etext of The Sea, by Ann Author***
#3 in our series by Ann Author

Copyright laws are changing all over the world, be sure to check.

Release Date: January, 1994  [Etext #99]

***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here? You know: lawyers.
*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*


This etext was prepared by A. Helper, helper@example.com.


Caf\u00e9 by the sea.


End of The Project Gutenberg Etext of The Sea, by Ann Author
"""


def test_a_book_of_the_nineties_in_latin1(tmp_path):
    (document,), account = read(tmp_path / "sea10.txt", OLD_BOOK.encode("latin-1"))
    assert (document.text, document.title, document.author) == ("Café by the sea.", "The Sea", "Ann Author")
    assert (document.licence, document.date) == ("Public domain in the USA", "1994-01")
    assert document.offset == OLD_BOOK.index("Café")
    assert account.changed == {"cp1252": 1, "gutenberg": 1}


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("*** START OF THIS PROJECT GUTENBERG EBOOK X ***", "*** END OF THIS PROJECT GUTENBERG EBOOK X ***"),
        ("***START OF THE PROJECT GUTENBERG EBOOK X***", "***END OF THE PROJECT GUTENBERG EBOOK X***"),
        ("*** START OF PROJECT GUTENBERG EBOOK X ***", "END OF PROJECT GUTENBERG ETEXT OF X"),
        ("*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.", "End of this Project Gutenberg Etext of X"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK X ***", "Ende dieses Project Gutenberg Etextes X"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK X ***", "Fin du Project Gutenberg EBook de X"),
    ],
)
def test_marks_of_start_and_end_in_their_forms(tmp_path, start, end):
    (document,), _ = read(
        tmp_path / "a.txt", f"Project Gutenberg\n{start}\n\nThe text.\n\n{end}\nMore.".encode()
    )
    assert document.text == "The text."


def test_other_texts_stay_as_they_are(tmp_path):
    text = "Produced by nobody.\n\n*** START OF THE END ***\nx  y\n  z\n"
    (document,), account = read(tmp_path / "a.txt", text.encode())
    assert document.text == text.rstrip("\n")
    assert (document.title, document.licence, account.changed) == (None, None, {})


def test_paragraphs_and_lines(tmp_path):
    content = "One\nline ঢাকা.\n\n \n\nTwo.\nThree.".encode()
    documents, _ = read(tmp_path / "a.txt", content, document="paragraph")
    assert [(d.text, d.id, d.offset) for d in documents] == [
        ("One\nline ঢাকা.", "a.txt#1", 0),
        ("Two.\nThree.", "a.txt#2", content.index(b"Two")),
    ]
    documents, _ = read(tmp_path / "a.txt", content, document="line")
    assert [d.text for d in documents] == ["One", "line ঢাকা.", "Two.", "Three."]
    assert documents[3].offset == content.index(b"Three")


@pytest.mark.parametrize(
    ("content", "text", "changed"),
    [
        ("\ufeffঢাকা".encode(), "ঢাকা", {"bom": 1}),
        ("\ufeffঢাকা".encode("utf-16-le"), "ঢাকা", {"utf16": 1}),
        ("\ufeffঢাকা".encode("utf-16-be"), "ঢাকা", {"utf16": 1}),
        ("\ufeffঢাকা".encode("utf-32-le"), "ঢাকা", {"utf32": 1}),
        (b"caf\xe9 \x93q\x94", "café “q”", {"cp1252": 1}),
        (b"caf\xe9 \x81", "café \x81", {"cp1252": 1}),
        ("ঢাকা শহর ".encode() + b"\xff!", "ঢাকা শহর \ufffd!", {"invalid_utf8": 1}),
        (b"a\r\nb\r\n", "a\nb", {"crlf": 1}),
        (b"a\rb", "a\nb", {"cr": 1}),
        (b"a" * 200 + b"\0", "a" * 200, {"nul": 1}),
    ],
)  # fmt: skip
def test_characters_however_they_are_written(tmp_path, content, text, changed):
    (document,), account = read(tmp_path / "a.txt", content)
    assert (document.text, account.changed) == (text, changed)


@pytest.mark.parametrize(
    "content",
    [
        b"%PDF-1.5 text",
        b"PK\x03\x04 text",
        bytes(range(256)) * 10,
        "text without a mark".encode("utf-16-le"),
        b"\x7fELF" + bytes(100),
    ],
)
def test_files_that_are_no_text_are_faults(tmp_path, content):
    documents, account = read(tmp_path / "a.txt", content)
    assert (documents, account.faults) == ([], {"binary": 1})
    with pytest.raises(UserError, match=r"a\.txt, offset 0: .*binary"):
        read(tmp_path / "a.txt", content, strict=True)


def test_files_that_are_empty_long_or_cut_short(tmp_path):
    assert read(tmp_path / "a.txt", b" \n")[1].dropped == {"empty_file": 1}
    assert read(tmp_path / "a.txt", b"")[1].dropped == {"empty_file": 1}
    documents, account = read(tmp_path / "a.txt", b"x" * 1001, max_document_bytes=1000)
    assert (documents, account.faults) == ([], {"too_long": 1})
    packed = gzip.compress(NEW_BOOK.encode())
    assert len(read(tmp_path / "a.txt.gz", packed, compression="gz", document="chapter")[0]) == 3
    documents, account = read(tmp_path / "a.txt.gz", packed[:-50], compression="gz")
    assert (documents, account.faults) == ([], {"truncated_gz": 1})
    bomb = gzip.compress(bytes(20 << 20))
    assert read(tmp_path / "a.txt.gz", bomb, compression="gz")[1].faults == {"too_long": 1}
    with pytest.raises(UserError, match="none cannot be read"):
        list(
            read_text_files(
                RawPart(RawFile(str(tmp_path / "none"), "none", "text", "", 1, ""), 0, 1),
                RawOptions(),
                account,
            )
        )
    with pytest.raises(UserError, match="chapter"):
        read(tmp_path / "a.txt", b"x", document="chapters")


@pytest.mark.parametrize(("kind", "newline"), [("line", "\n"), ("paragraph", "\n"), ("paragraph", "\r\n")])
def test_long_files_are_read_in_pieces(tmp_path, monkeypatch, kind, newline):
    content = "".join(f"Text ঢাকা {i}.\nMore.\n\n" for i in range(100)).replace("\n", newline).encode()
    whole, _ = read(tmp_path / "a.txt", content, document=kind)
    assert len(whole) == (200 if kind == "line" else 100)
    monkeypatch.setattr("jaxlm.corpus.raw.unpacked.BLOCK_BYTES", 97)
    pieces, account = read(tmp_path / "a.txt", content, document=kind, max_document_bytes=300)
    assert (pieces, account.faults) == (whole, {})
    packed = gzip.compress(content)
    some, account = read(tmp_path / "a.txt.gz", packed[:-20], compression="gz", document=kind)
    assert 0 < len(some) <= len(whole)
    assert account.faults == {"truncated_gz": 1}
    one = b"x" * 200 + b"\n\n" + b"y" * 500
    documents, account = read(tmp_path / "a.txt", one, document=kind, max_document_bytes=300)
    assert ([d.text for d in documents], account.faults) == (["x" * 200], {"too_long": 1})


def firsts(text):
    return [text[start:stop].strip().split("\n")[0] for start, stop in chapters(text)]


@pytest.mark.parametrize(
    ("headings", "expected"),
    [
        (["CHAPTER I", "CHAPTER II"], None),
        (["Chapter 1: Of Ships", "Chapter 2: Of Seas"], None),
        (["CHAPTER THE FIRST", "CHAPTER THE TWENTY-SECOND"], None),
        (["Book One", "Book Two"], None),
        (["Kapitel 1", "Kapitel 2"], None),
        (["CHAPITRE PREMIER", "CHAPITRE II"], None),
        (["ГЛАВА I", "ГЛАВА II"], None),
        (["第一章 海", "第二章 船"], None),
        (["প্রথম পরিচ্ছেদ", "দ্বিতীয় পরিচ্ছেদ"], None),
        (["I", "II.", "III"], None),
        (["I", "V"], []),
        (["  STAVE ONE.", "  STAVE TWO."], ["STAVE ONE.", "STAVE TWO."]),
        (["Chapter one was written by him.", "Part of it"], []),
        (["A chapter", "The book"], []),
    ],
)
def test_headings_of_chapters(headings, expected):
    text = "The title\n\n" + "".join(f"{heading}\n\n{LONG}\n\n" for heading in headings)
    expected = headings if expected is None else expected
    assert firsts(text) == ["The title", *expected]


def test_a_book_above_its_first_chapter_belongs_to_it():
    text = f"BOOK I\n\nCHAPTER I\n\n{LONG}\n\nCHAPTER II\n\n{LONG}\n\nBOOK II\n\nCHAPTER I\n\n{LONG}\n"
    assert firsts(text) == ["BOOK I", "CHAPTER II", "BOOK II"]


def test_contents_in_one_block_are_no_chapters():
    text = f"CONTENTS\n\nCHAPTER I. SHIPS\nCHAPTER II. SEAS\nCHAPTER III. ICE\n\n{LONG}\n\nCHAPTER I. SHIPS\n\n{LONG}\n"
    assert firsts(text) == ["CONTENTS", "CHAPTER I. SHIPS"]


def test_all_text_is_in_a_chapter():
    for text in (NEW_BOOK, OLD_BOOK, LONG, "", "CHAPTER I\n\nCHAPTER II\n", "I\n\nII\n\nIII\n"):
        cuts = chapters(text)
        assert "".join(text[start:stop] for start, stop in cuts) == text
