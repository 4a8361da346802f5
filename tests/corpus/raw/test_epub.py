"""EPUB: the text of a book in the order of its spine, and archives that were made to hurt."""

import io
import re
import zipfile

import pytest

from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.epub import page_text, read_epub
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
from jaxlm.types import UserError

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
PACKAGE = """<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>সমুদ্র &amp; The Sea</dc:title><dc:title>Second</dc:title><dc:creator>Ann Author</dc:creator>
<dc:language>bn-BD</dc:language><dc:rights>CC BY 4.0</dc:rights><dc:date>2020-05-03T00:00:00Z</dc:date>
</metadata>
<manifest>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="css" href="a.css" media-type="text/css"/>
<item id="c2" href="text/two%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="c1" href="text/one.xhtml#top" media-type="application/xhtml+xml"/>
<item id="pic" href="a.jpg" media-type="image/jpeg"/>
</manifest>
<spine><itemref idref="nav"/><itemref idref="c1"/><itemref idref="pic"/><itemref idref="c2"/></spine>
</package>"""
ONE = """<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x.js"/><style>p {color: red}</style></head>
<body><h1>প্রথম</h1><p>A <i>wrapped</i>
line.</p><p>Next&#160;one<br/>broken.</p><ul><li>a</li><li>b</li></ul></body></html>"""
TWO = "<html><body><h1>Two</h1><p>র‍্যাব &amp; ক্‌ষ.</p><script>no</script></body></html>"
TEXT_1 = "প্রথম\n\nA wrapped line.\n\nNext one\nbroken.\n\n- a\n- b"
TEXT_2 = "Two\n\nর‍্যাব & ক্‌ষ."


def members(**changes):
    content = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE,
        "OEBPS/nav.xhtml": "<html><body>Contents</body></html>",
        "OEBPS/text/one.xhtml": ONE,
        "OEBPS/text/two b.xhtml": TWO,
        **changes,
    }
    return {name: text for name, text in content.items() if text is not None}


def archive(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in content.items():
            packed.writestr(name, text)
    return stream.getvalue()


def read(path, content, strict=False, **options):
    path.write_bytes(content)
    file = RawFile(str(path), path.name, "epub", "", len(content), "")
    account = Account(strict=strict)
    return list(read_epub(RawPart(file, 0, len(content)), RawOptions(**options), account)), account


def test_a_book_is_its_pages_in_the_order_of_the_spine(tmp_path):
    content = archive(members())
    (document,), account = read(tmp_path / "a.epub", content)
    assert document == RawDocument(
        text=f"{TEXT_1}\n\n{TEXT_2}",
        id="a.epub",
        file="a.epub",
        offset=0,
        num_bytes=len(content),
        date="2020-05-03",
        licence="CC BY 4.0",
        title="সমুদ্র & The Sea",
        language="bn",
        author="Ann Author",
    )
    assert account == Account()


def test_a_chapter_is_a_page(tmp_path):
    documents, _ = read(tmp_path / "a.epub", archive(members()), document="chapter")
    assert [(d.id, d.text) for d in documents] == [("a.epub#2", TEXT_1), ("a.epub#4", TEXT_2)]
    documents, _ = read(tmp_path / "a.epub", archive(members()), document="paragraph")
    assert [d.text for d in documents] == [*TEXT_1.split("\n\n"), *TEXT_2.split("\n\n")]
    with pytest.raises(UserError, match="pages"):
        read(tmp_path / "a.epub", archive(members()), document="pages")


def test_boilerplate_of_project_gutenberg_goes(tmp_path):
    first = "<p>The Project Gutenberg eBook of X</p><p>*** START OF THE PROJECT GUTENBERG EBOOK X ***</p>"
    last = "<p>Real end.</p><p>*** END OF THE PROJECT GUTENBERG EBOOK X ***</p><p>Licence.</p>"
    content = archive(
        members(**{"OEBPS/text/one.xhtml": first + ONE[ONE.index("<h1>") :], "OEBPS/text/two b.xhtml": last})
    )
    documents, account = read(tmp_path / "a.epub", content, document="chapter")
    assert [d.text for d in documents] == [TEXT_1, "Real end."]
    assert account.changed == {"gutenberg": 1}


def fault_of(tmp_path, content, reason, number_left):
    """Reads a damaged archive: one fault for this reason, and a UserError in strict mode."""
    documents, account = read(tmp_path / "a.epub", content, document="chapter")
    assert account.faults == {reason: 1}
    assert len(documents) == number_left
    with pytest.raises(UserError, match=rf"a\.epub, .*\({reason}\)"):
        read(tmp_path / "a.epub", content, document="chapter", strict=True)


@pytest.mark.parametrize(
    "href", ["../../etc/passwd", "/etc/passwd", "text/../../../x", "file:///etc/passwd", "a\\b", "%2e%2e/%2e%2e/x", ""]
)  # fmt: skip
def test_names_that_climb_out_are_faults(tmp_path, href):
    package = PACKAGE.replace("text/one.xhtml#top", href)
    reason = "climbs_out" if href else "missing_member"
    fault_of(tmp_path, archive(members(**{"OEBPS/book.opf": package})), reason, 1)


def test_a_package_elsewhere_is_a_fault(tmp_path):
    container = CONTAINER.replace("OEBPS/book.opf", "../book.opf")
    fault_of(tmp_path, archive(members(**{"META-INF/container.xml": container})), "climbs_out", 0)


def test_missing_members_cost_themselves(tmp_path):
    fault_of(tmp_path, archive(members(**{"OEBPS/text/one.xhtml": None})), "missing_member", 1)
    fault_of(tmp_path, archive(members(**{"META-INF/container.xml": None})), "missing_member", 0)
    fault_of(tmp_path, archive(members(**{"OEBPS/book.opf": None})), "missing_member", 0)
    package = PACKAGE.replace('idref="c1"', 'idref="none"')
    fault_of(tmp_path, archive(members(**{"OEBPS/book.opf": package})), "missing_member", 1)


def test_bombs_are_faults(tmp_path, monkeypatch):
    fault_of(tmp_path, archive(members(**{"OEBPS/text/one.xhtml": "x" * (8 << 20)})), "bomb", 1)
    fault_of(tmp_path, archive(members(**{"OEBPS/text/one.xhtml": "x" * (20 << 20)})), "too_long", 1)
    monkeypatch.setattr("jaxlm.corpus.raw.epub.MAX_MEMBERS", 100)
    fault_of(tmp_path, archive(members(**{f"{i}": "" for i in range(100)})), "bomb", 0)


def test_a_size_that_is_a_lie_is_found_out(tmp_path):
    content = bytearray(archive(members(**{"OEBPS/text/one.xhtml": "x" * (8 << 20)})))
    size = (8 << 20).to_bytes(4, "little")
    for match in list(re.finditer(re.escape(size), bytes(content))):
        content[match.start() : match.end()] = (100).to_bytes(4, "little")
    documents, account = read(tmp_path / "a.epub", bytes(content), document="chapter")
    assert [d.text for d in documents] == [TEXT_2]
    assert sum(account.faults.values()) == 1


def test_entities_are_never_expanded(tmp_path):
    doctype = '<!DOCTYPE p [<!ENTITY a "aaaa"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    package = PACKAGE.replace("<package", f"{doctype}<package", 1).replace("সমুদ্র", "&a;")
    fault_of(tmp_path, archive(members(**{"OEBPS/book.opf": package})), "broken_epub", 0)
    page = TWO.replace("<html>", f"{doctype}<html>").replace("Two", "&a;&f;")
    documents, _ = read(
        tmp_path / "a.epub", archive(members(**{"OEBPS/text/two b.xhtml": page})), document="chapter"
    )
    assert documents[1].text.startswith("&a;&f;") or "aaaa" not in documents[1].text
    assert "root:" not in documents[1].text


@pytest.mark.parametrize(("locked", "reads"), [("OEBPS/text/one.xhtml", False), ("OEBPS/fonts/a.otf", True)])
def test_encrypted_pages_are_a_fault_and_fonts_are_not(tmp_path, locked, reads):
    encryption = f"""<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"
    xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData><enc:CipherData>
    <enc:CipherReference URI="{locked}"/></enc:CipherData></enc:EncryptedData></encryption>"""
    content = archive(members(**{"META-INF/encryption.xml": encryption}))
    if reads:
        assert len(read(tmp_path / "a.epub", content, document="chapter")[0]) == 2
    else:
        fault_of(tmp_path, content, "drm", 0)


def test_damaged_archives_are_faults(tmp_path):
    whole = archive(members())
    fault_of(tmp_path, whole[: len(whole) // 2], "broken_epub", 0)
    fault_of(tmp_path, b"not a zip", "broken_epub", 0)
    fault_of(tmp_path, archive(members(**{"OEBPS/book.opf": "<package><spine>"})), "broken_epub", 0)
    fault_of(tmp_path, archive(members(**{"OEBPS/book.opf": "<package/>"})), "broken_epub", 0)
    fault_of(tmp_path, archive(members(**{"OEBPS/book.opf": "<a>" * 200})), "broken_epub", 0)
    damaged = bytearray(whole)
    at = whole.index(b"OEBPS/text/one.xhtml") + 60
    damaged[at : at + 30] = bytes(30)
    fault_of(tmp_path, bytes(damaged), "broken_epub", 1)
    assert read(tmp_path / "a.epub", b"")[1].dropped == {"empty_file": 1}
    with pytest.raises(UserError, match="none cannot be read"):
        list(
            read_epub(
                RawPart(RawFile(str(tmp_path / "none"), "none", "epub", "", 1, ""), 0, 1),
                RawOptions(),
                Account(),
            )
        )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<p>caf\u00e9</p>".encode("utf-16"), "café"),
        (b"<?xml version='1.0' encoding='iso-8859-1'?><p>caf\xe9</p>", "café"),
        (b"<?xml version='1.0' encoding='no-such'?><p>caf\xc3\xa9</p>", "café"),
        (b"<p>caf\xe9</p>", "café"),
        (b"<title/><div/><a id='x'/><p>a</p>", "a"),
        (b"", ""),
        (b"<div>" * 5000 + b"deep", "deep"),
    ],
)
def test_pages_of_other_kinds(content, text):
    assert page_text(content) == text
