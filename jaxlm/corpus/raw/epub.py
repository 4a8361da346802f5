"""Books in EPUB 2 and 3: the text of a zip archive of pages, in the order of their spine.

A document is a book (`document="file"`), a page of its spine (`chapter`), or a paragraph or line of it. Title, author,
language, date and licence are the package's `dc:` elements; header and licence of Project Gutenberg are cut off as in
text files.

Faults: `broken_epub`, `missing_member`, `climbs_out` (a name that leads out of the archive), `bomb`, `too_long`, `drm`
(pages are encrypted; fonts may be). Entities of XML are never expanded.

Source: https://www.w3.org/TR/epub-33/ (sections 4.2 container, 5 package document).
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import struct
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from jaxlm.config import check_choice
from jaxlm.corpus.raw import gutenberg
from jaxlm.corpus.raw.books import cleaned
from jaxlm.corpus.raw.config import DOCUMENTS
from jaxlm.corpus.raw.document import Account, RawDocument
from jaxlm.corpus.raw.files import RawOptions, RawPart, open_bytes
from jaxlm.corpus.raw.unpacked import has_bytes
from jaxlm.corpus.readers import MAX_EXPANSION

MAX_MEMBERS = 20_000
_FREE_BYTES = 1 << 20
"""A member may have this many bytes however small it is compressed."""
_PACKAGE_BYTES = 8 << 20
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError,
               struct.error, LookupError, OverflowError, MemoryError)  # fmt: skip
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")
_EMPTY_TAG = re.compile(r"<((?!(?:br|hr|img|meta|link|input|col|wbr|area|base|embed|source|track)\b)"
                        r"[a-z][a-z0-9]{0,20})\b([^<>]{0,2000}+)(?<=/)>", re.IGNORECASE)  # fmt: skip
_DECLARED = re.compile(rb"<\?xml[^>]{0,200}encoding=[\"']([\w.-]{1,40})")


class _Damage(Exception):
    """(reason, place, detail) of a fault."""


@dataclass
class _Package:
    values: dict[str, str] = field(default_factory=dict)
    """Of the `dc:` elements, by local name; the first of each."""
    manifest: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """href, media type and properties by id."""
    spine: list[str] = field(default_factory=list)


def read_epub(part: RawPart, options: RawOptions, account: Account) -> Iterator[RawDocument]:
    """The documents of a book."""
    check_choice("document", options.document, DOCUMENTS)
    file = part.file
    if not has_bytes(file):
        account.drop("empty_file", file.name)
        return
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open_bytes(file))
        try:
            archive = stack.enter_context(zipfile.ZipFile(stream))
            if len(archive.infolist()) > MAX_MEMBERS:
                raise _Damage("bomb", "its list of members", f"it has more than {MAX_MEMBERS:,}")
            folder, package = _package(archive)
            _check_readable(archive, folder, package)
        except _Damage as damage:
            account.fault(damage.args[0], file.name, damage.args[1], damage.args[2])
            return
        except (*_ZIP_ERRORS, expat.ExpatError) as error:
            account.fault("broken_epub", file.name, "its package", f"{type(error).__name__}: {error}")
            return
        pages = _pages(archive, folder, package, file.name, options.max_document_bytes, account)
        if pages is not None:
            yield from _documents(pages, package, part, options, account)


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member's content. Errors: _Damage, and those of zipfile."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise _Damage("missing_member", f"member {name!r}", "the archive does not have it") from None
    with archive.open(info) as stream:
        content = stream.read(limit + 1)  # the size that the archive states may be a lie
    if len(content) > limit:
        raise _Damage(
            "too_long", f"member {name!r}", f"it has more than {limit:,} bytes (max_document_bytes)"
        )
    if len(content) > max(_FREE_BYTES, MAX_EXPANSION * info.compress_size):
        raise _Damage("bomb", f"member {name!r}", f"{info.compress_size:,} bytes expand to {len(content):,}")
    return content


def _resolve(folder: str, href: str) -> str:
    """The member that a link from a file in `folder` names. Errors: _Damage if it is none of the archive."""
    path = urllib.parse.unquote(href.partition("#")[0])
    name = posixpath.normpath(posixpath.join(folder, path))
    if (
        not path
        or "\\" in path
        or "\0" in path
        or re.match(r"[A-Za-z][\w+.-]*:|/", path)
        or name.split("/")[0] == ".."
    ):
        raise _Damage("climbs_out", f"member {href[:200]!r}", "the name leads out of the archive")
    return name


def _elements(xml: bytes) -> Iterator[tuple[str, dict[str, str], str]]:
    """(local name, attributes, text) of each element, in the order of their ends; text is that before the first child.

    Errors: ExpatError; _Damage where entities are declared.
    """
    done: list[tuple[str, dict[str, str], str]] = []
    open_elements: list[tuple[str, dict[str, str], list[str]]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(open_elements) > 100:
            raise _Damage("broken_epub", "its package", "elements are nested more than 100 deep")
        open_elements.append((name.rpartition(":")[2], attributes, []))

    def end(_: str) -> None:
        name, attributes, text = open_elements.pop()
        done.append((name, attributes, "".join(text).strip()))

    def entity(*_: object) -> None:
        raise _Damage("broken_epub", "its package", "it declares entities")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.EntityDeclHandler = entity
    parser.CharacterDataHandler = lambda text: open_elements[-1][2].append(text)
    parser.Parse(xml, True)
    return iter(done)


def _package(archive: zipfile.ZipFile) -> tuple[str, _Package]:
    """The package document, and the folder that its links start from."""
    container = _member(archive, "META-INF/container.xml", _PACKAGE_BYTES)
    paths = [a.get("full-path", "") for name, a, _ in _elements(container) if name == "rootfile"]
    if not paths:
        raise _Damage("broken_epub", "META-INF/container.xml", "it names no package document")
    path = _resolve("", paths[0])
    package = _Package()
    for name, attributes, text in _elements(_member(archive, path, _PACKAGE_BYTES)):
        if name in ("title", "creator", "language", "rights", "date", "identifier") and text:
            package.values.setdefault(name, " ".join(text.split()))
        elif name == "item":
            values = (
                attributes.get("href", ""),
                attributes.get("media-type", ""),
                attributes.get("properties", ""),
            )
            package.manifest[attributes.get("id", "")] = values
        elif name == "itemref":
            package.spine.append(attributes.get("idref", ""))
    if not package.spine:
        raise _Damage("broken_epub", f"member {path!r}", "its spine is empty")
    return posixpath.dirname(path), package


def _check_readable(archive: zipfile.ZipFile, folder: str, package: _Package) -> None:
    """_Damage where pages of the spine are encrypted; obfuscated fonts are in many free books."""
    if "META-INF/encryption.xml" not in archive.namelist():
        return
    hrefs = (package.manifest[i][0].partition("#")[0] for i in package.spine if i in package.manifest)
    pages = {posixpath.normpath(posixpath.join(folder, urllib.parse.unquote(href))) for href in hrefs}
    for name, attributes, _ in _elements(_member(archive, "META-INF/encryption.xml", _PACKAGE_BYTES)):
        locked = posixpath.normpath(urllib.parse.unquote(attributes.get("URI", "")).lstrip("/"))
        if name == "CipherReference" and locked in pages:
            raise _Damage(
                "drm", f"member {locked[:200]!r}", "it is encrypted: no text without its owner's key"
            )


def _pages(
    archive: zipfile.ZipFile, folder: str, package: _Package, name: str, limit: int, account: Account
) -> list[tuple[int, str]] | None:
    """(number in the spine, text) of the pages. A damaged one is a fault, and so is a book that is too long."""
    out: list[tuple[int, str]] = []
    size = 0
    for number, key in enumerate(package.spine, 1):
        href, kind, properties = package.manifest.get(key, ("", "", ""))
        if (kind and kind not in _PAGES) or "nav" in properties.split():
            continue
        try:
            if not href:
                raise _Damage("missing_member", f"spine item {number}", f"the manifest has no {key[:100]!r}")
            content = _member(archive, _resolve(folder, href), limit)
        except _Damage as damage:
            account.fault(damage.args[0], name, damage.args[1], damage.args[2])
            continue
        except _ZIP_ERRORS as error:
            account.fault("broken_epub", name, f"member {href[:200]!r}", f"{type(error).__name__}: {error}")
            continue
        size += len(content)
        if size > limit:
            account.fault(
                "too_long", name, f"member {href[:200]!r}", f"the pages have more than {limit:,} bytes"
            )
            return None
        text = page_text(content)
        if text:
            out.append((number, text))
    return out


def page_text(content: bytes) -> str:
    """The text of a page of XHTML: paragraphs with blank lines between them, list items with "- "."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    # As HTML, <title/> and <script/> would have no end, and swallow the page.
    html = _EMPTY_TAG.sub(lambda m: f"<{m[1]}{m[2].rstrip('/')}></{m[1]}>", _decoded(content))
    text = extract_plain_text(
        HTMLTree.parse(html), preserve_formatting=True, main_content=False, links=False, alt_texts=False
    )
    text = re.sub(r"^[ \t]*•[ \t]*", "- ", text.replace("\u00a0", " "), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)).strip()


def _decoded(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    declared = _DECLARED.match(content)
    for encoding in (declared[1].decode() if declared else "utf-8", "utf-8", "cp1252"):
        try:
            return content.decode(encoding).removeprefix("\ufeff")
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("latin-1")


def _documents(
    pages: list[tuple[int, str]], package: _Package, part: RawPart, options: RawOptions, account: Account
) -> Iterator[RawDocument]:
    whole = "\n\n".join(text for _, text in pages)
    start, stop = gutenberg.body(whole)
    if gutenberg.is_gutenberg(whole):
        account.changed["gutenberg"] += 1
    about = gutenberg.book(whole)
    pieces: list[tuple[str, str]] = []
    at = 0
    for number, text in pages:
        piece = text[max(0, start - at) : max(0, stop - at)].strip()
        pieces += [(f"#{number}", piece)] if piece else []
        at += len(text) + 2
    if options.document == "file":
        pieces = [("", "\n\n".join(piece for _, piece in pieces))]
    elif options.document != "chapter":
        separator = r"\n{2,}" if options.document == "paragraph" else r"\n+"
        small = [one for _, piece in pieces for one in re.split(separator, piece)]
        pieces = [(f"#{number}", one) for number, one in enumerate(small, 1)]
    values = package.values
    for suffix, piece in pieces:
        text = cleaned(piece, account)
        if text is not None:
            yield RawDocument(
                text=text,
                id=f"{part.file.name}{suffix}",
                file=part.file.name,
                offset=0,
                num_bytes=part.file.num_bytes if not suffix else len(piece.encode()),
                date=_date(values.get("date")) or about.date,
                licence=values.get("rights") or about.licence,
                title=values.get("title") or about.title,
                author=values.get("creator") or about.author,
                language=(values.get("language", "").split("-")[0].lower() or about.language),
            )


def _date(text: str | None) -> str | None:
    match = re.match(r"\d{4}(?:-\d\d(?:-\d\d)?)?", text or "")
    return match[0] if match else None
