"""On sound files the reader gives the records that fastwarc gives: ids, places, bytes."""

import gzip
import io
import random

import pytest

from jaxlm.corpus.raw.frames import frames
from jaxlm.corpus.raw.warc_records import records

fastwarc = pytest.importorskip("fastwarc.warc")
KINDS = ("warcinfo", "request", "response", "metadata", "conversion", "revisit")


def record(own, number):
    body = own.randbytes(own.choice((0, 1, 100, 5000, 70_000)))
    kind = own.choice(KINDS)
    head = [
        "WARC/1." + own.choice("01"),
        f"WARC-Type: {kind}",
        f"WARC-Record-ID: <urn:uuid:{number:032x}>",
        f"WARC-Target-URI: https://example.org/{number}?a=b:c",
        "Content-Type: application/http; msgtype=response"
        if own.random() < 0.5
        else "Content-Type: text/plain",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body + b"\r\n\r\n"


@pytest.mark.parametrize("compression", ["", "gz"])
@pytest.mark.parametrize("seed", range(3))
def test_records_are_those_of_fastwarc(compression, seed):
    own = random.Random(seed)
    blocks = [record(own, number) for number in range(60)]
    raw = b"".join(gzip.compress(block, mtime=0) if compression else block for block in blocks)
    faults = []
    size = None if compression else len(raw)
    pieces = frames(io.BytesIO(raw), compression)
    ours = [
        (found.headers["WARC-Record-ID"], found.headers["WARC-Type"], found.offset, found.block)
        for found in records(pieces, 1 << 30, lambda *fault: faults.append(fault), size)
    ]
    theirs = [
        (one.headers["WARC-Record-ID"], one.headers["WARC-Type"], one.stream_pos, one.reader.read())
        for one in fastwarc.ArchiveIterator(io.BytesIO(raw), parse_http=False)
    ]
    assert faults == []
    assert len(ours) == 60
    assert ours == theirs
