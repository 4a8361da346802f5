"""How fast dumps of Wikipedia become text: wikitext alone, and all of `read_wikipedia`, in MB/s of one core.

    python bench/wikitext.py enwiki-latest-pages-articles1.xml.bz2          # the first 20 MB of its articles
    python bench/wikitext.py                                                # articles made up here

MB are 10**6 bytes of wikitext, or of decompressed XML, as the line says; every figure is the best of several runs.
"""

from __future__ import annotations

import argparse
import bz2
import html
import os
import re
import tempfile
import time
from collections.abc import Callable

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
from jaxlm.corpus.raw.wikipedia import read_wikipedia
from jaxlm.corpus.raw.wikitext import plain_text

_PARAGRAPH = (
    "'''Name {n}''' ({{{{lang-la|Nomen}}}}; {{{{IPAc-en|n}}}}) is a [[village]] of [[Region {n}|the region]],"
    '<ref name="a">{{{{cite web|url=http://example.org/{n}|title=Page {n}|date=2010}}}}</ref> with '
    "{{{{convert|{n}|km}}}} of roads, and nobody knows what its [[history|past]] was before the long war ended.\n\n"
    "== History of {n} ==\n* First ''item'' of [[List of items|the list]]\n* Second item\n\n"
)


def made_up(path: str, num_pages: int) -> None:
    """A dump of articles that repeat a paragraph."""
    with bz2.open(path, "wt", encoding="utf-8") as file:
        file.write('<mediawiki xml:lang="en"><siteinfo><dbname>madewiki</dbname></siteinfo>\n')
        for page in range(1, num_pages + 1):
            text = html.escape("".join(_PARAGRAPH.format(n=page * 31 + i) for i in range(40)))
            file.write(
                f"<page><title>P{page}</title><ns>0</ns><id>{page}</id><revision><text>{text}</text></revision></page>\n"
            )
        file.write("</mediawiki>\n")


def best_s(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run, of this process."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def decompress(path: str) -> int:
    """Bytes of a bz2 file, read and thrown away."""
    size = 0
    with bz2.open(path, "rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dump", nargs="?", help="a pages-articles dump, .xml.bz2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="mwparserfromhell too, on the first 2 MB (slow)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.dump
        if path is None:
            path = os.path.join(folder, "made.xml.bz2")
            made_up(path, 400)
        measure(path, arguments.repeats, arguments.peer)


def measure(path: str, repeats: int, peer: bool) -> None:
    """Prints the table of one dump."""
    texts, size = [], 0
    with bz2.open(path, "rt", encoding="utf-8", errors="replace") as file:
        for match in re.finditer(r"<text[^<>]*>(.*?)</text>", file.read(80_000_000), re.DOTALL):
            text = html.unescape(match[1])
            if not text.lower().startswith("#redirect"):
                texts.append(text)
                size += len(text.encode())
            if size > 20e6:
                break
    num_bytes = os.path.getsize(path)
    num_xml_bytes = decompress(path)
    part = RawPart(RawFile(path, os.path.basename(path), "wikipedia", "bz2", num_bytes, ""), 0, num_bytes)
    rows = {
        f"wikitext to text, {size / 1e6:.1f} MB of wikitext": size
        / best_s(lambda: [plain_text(text) for text in texts], repeats),
        f"bz2 alone, {num_xml_bytes / 1e6:.1f} MB of XML": num_xml_bytes
        / best_s(lambda: decompress(path), repeats),
        "read_wikipedia, the same XML": num_xml_bytes
        / best_s(lambda: sum(1 for _ in read_wikipedia(part, RawOptions(), Account())), repeats),
    }
    if peer:
        import mwparserfromhell

        few, few_bytes = [], 0
        for text in texts:
            few.append(text)
            few_bytes += len(text.encode())
            if few_bytes > 2e6:
                break
        name = f"the first {few_bytes / 1e6:.1f} MB of wikitext"
        rows[f"jaxlm, {name}"] = few_bytes / best_s(lambda: [plain_text(text) for text in few], repeats)
        seconds = best_s(lambda: [mwparserfromhell.parse(text).strip_code() for text in few], 1)
        rows[f"mwparserfromhell {mwparserfromhell.__version__}, {name}"] = few_bytes / seconds
    for name, bytes_per_s in rows.items():
        print(f"{name:<60} {bytes_per_s / 1e6:8.1f} MB/s")


if __name__ == "__main__":
    main()
