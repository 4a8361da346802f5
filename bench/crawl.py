"""How fast a crawl becomes documents: `python bench/crawl.py [--mb 40] [--rounds 3] [--extractor resiliparse]`.

Makes a WET and a WARC file (one gzip member a record) of pages of the text that comes with jaxlm, and prints MB/s of
uncompressed records and of HTML, CPU time of one core, the best of several rounds that take turns:

- WET: `read_warc` to documents, beside fastwarc that only goes over the records and reads each payload; and beside
  fastwarc that decodes each payload to text.
- WARC: `read_warc` to the main text of pages, beside the extractor alone on the same pages, decoded before.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastwarc.warc import ArchiveIterator

from jaxlm.corpus import embedded
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.files import RawOptions, cut, find_files
from jaxlm.corpus.raw.warc import read_warc

PAGE_BYTES = (2_000, 16_000)
"""Of text, from, to."""


def record(kind: str, number: int, content_type: str, block: bytes) -> bytes:
    """One record with the headers that Common Crawl writes."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: https://example.org/page/{number}\r\n"
        f"WARC-Date: 2024-05-18T01:58:10Z\r\nWARC-Record-ID: <urn:uuid:{number:032x}>\r\n"
        f"WARC-Refers-To: <urn:uuid:{number + 1:032x}>\r\nWARC-Block-Digest: sha1:UZY6ND6CCHXETFVJD2MSS7ZENMWF7KQ2\r\n"
        f"WARC-Identified-Content-Language: eng\r\nContent-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def page_of(paragraphs: list[str], number: int) -> str:
    """HTML around paragraphs: menus, scripts, styles, a footer."""
    links = "".join(f'<li class="menu-item"><a href="/topic/{i}">Topic {i}</a></li>' for i in range(60))
    script = "window.dataLayer=window.dataLayer||[];function gtag(){dataLayer.push(arguments)};" * 40
    style = ".site-header{margin:0;padding:4px 8px}.menu-item a:hover{color:#336699}" * 60
    body = "".join(f'<p class="text">{text}</p>\n' for text in paragraphs)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Page {number}</title>'
        f'<style>{style}</style><script>{script}</script></head><body><header class="site-header"><nav><ul>{links}'
        f'</ul></nav></header><main><article><h1>Page {number}</h1>{body}</article></main><aside class="sidebar"><ul>'
        f'{links}</ul></aside><footer id="footer"><p>Copyright, all rights reserved. Privacy. Cookies.</p></footer>'
        "</body></html>"
    )


def make(folder: Path, num_bytes: int) -> tuple[Path, Path, list[str], int]:
    """(WET file, WARC file, pages of the WARC file, bytes of records of the WET file)."""
    draw = random.Random(0)
    texts = embedded.texts("embedded:topics")
    paragraphs = [text.strip() for whole in texts for text in whole.split("\n\n") if text.strip()]
    wet, warc = folder / "made.warc.wet.gz", folder / "made.warc.gz"
    pages, size, html_bytes = [], 0, 0
    with wet.open("wb") as wet_file, warc.open("wb") as warc_file:
        while size < num_bytes:
            chosen, wanted = [], draw.randrange(*PAGE_BYTES)
            while sum(map(len, chosen)) < wanted:
                chosen.append(draw.choice(paragraphs))
            one = record("conversion", size, "text/plain", "\n".join(chosen).encode())
            size += len(one)
            wet_file.write(gzip.compress(one, 6))
            if html_bytes < num_bytes:
                pages.append(page_of(chosen, size))
                html_bytes += len(pages[-1])
                body = pages[-1].encode()
                http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
                request = record(
                    "request", size, "application/http; msgtype=request", b"GET / HTTP/1.1\r\n\r\n"
                )
                warc_file.write(gzip.compress(request, 6))
                warc_file.write(
                    gzip.compress(record("response", size, "application/http; msgtype=response", http), 6)
                )
    return wet, warc, pages, size


def _resiliparse(pages: list[str]) -> int:
    from resiliparse.extract.html2text import extract_plain_text

    return sum(len(extract_plain_text(page, main_content=True, alt_texts=False)) for page in pages)


def _trafilatura(pages: list[str]) -> int:
    import trafilatura

    return sum(len(trafilatura.extract(page, include_comments=False) or "") for page in pages)


ALONE = {"resiliparse": _resiliparse, "trafilatura": _trafilatura}
"""Each extractor with nothing of ours around it."""


def compare(
    name: str,
    size: int,
    ours: Callable[[], int],
    theirs: Callable[[Any], int],
    label: str,
    rounds: int,
    prepare: Callable[[], Any] = lambda: None,
) -> None:
    """Prints both rates and their ratio. `theirs` is given what `prepare` makes anew each time, outside the clock."""
    best = [float("inf")] * 2
    for _ in range(rounds):
        given = prepare()
        for side, run in enumerate((ours, functools.partial(theirs, given))):
            begin = time.process_time()
            run()
            best[side] = min(best[side], time.process_time() - begin)
    rates = [size / seconds / 1e6 for seconds in best]
    print(f"{name}: {rates[0]:7.1f} MB/s; {label}: {rates[1]:7.1f} MB/s; {100 * rates[0] / rates[1]:.0f}%")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=float, default=40, help="of records in each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--extractor", default="resiliparse")
    args = parser.parse_args()
    options = RawOptions(extractor=args.extractor)

    def documents(path: Path) -> int:
        (file,) = find_files([str(path)], "auto", Account())
        return sum(len(one.text) for one in read_warc(cut(file, file.num_bytes)[0], options, Account()))

    def decoded(path: Path) -> int:
        with path.open("rb") as stream:
            records = ArchiveIterator(stream, parse_http=False)
            return sum(len(one.reader.read().decode("utf-8", "replace")) for one in records)

    def payloads(path: Path) -> int:
        with path.open("rb") as stream:
            return sum(len(one.reader.read()) for one in ArchiveIterator(stream, parse_http=False))

    with tempfile.TemporaryDirectory() as folder:
        wet, warc, pages, size = make(Path(folder), int(args.mb * 1e6))
        compare(
            "WET to documents", size, lambda: documents(wet), lambda _: payloads(wet), "fastwarc", args.rounds
        )
        compare(
            "the same", size, lambda: documents(wet), lambda _: decoded(wet), "fastwarc, decoded", args.rounds
        )
        html_bytes = sum(len(page.encode()) for page in pages)
        bodies = [page.encode() for page in pages]
        # Anew: a string that was read once keeps its UTF-8, which the extractor asks for.
        fresh = lambda: [body.decode() for body in bodies]  # noqa: E731
        alone = ALONE[args.extractor]
        compare(
            "WARC to text", html_bytes, lambda: documents(warc), alone, args.extractor, args.rounds, fresh
        )


if __name__ == "__main__":
    main()
