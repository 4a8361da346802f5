"""WARC and WET files written out by hand, for the tests of their readers."""

import gzip

import zstandard

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.files import RawOptions, cut, find_files
from jaxlm.corpus.raw.warc import read_warc


def record(kind, block, number=1, **headers):
    """One record as bytes; headers by keyword replace those it has, None takes one away."""
    lines = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{number}>",
        "WARC-Date": "2024-05-18T01:58:10Z",
        "WARC-Target-URI": f"https://example.org/{number}",
        "Content-Type": "text/plain" if kind == "conversion" else "application/http; msgtype=response",
        "Content-Length": len(block),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + block + b"\r\n\r\n"


def page(html, status="200 OK", content_type="text/html; charset=utf-8", **headers):
    """An HTTP response."""
    lines = {
        "Content-Type": content_type,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + html


def html_of(text):
    return (
        f"<!DOCTYPE html><html><head><title>A page</title></head><body><p>{text}</p></body></html>".encode()
    )


def gz(content):
    return gzip.compress(content, mtime=0)


def zst(content):
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


PACK = {"": lambda content: content, ".gz": gz, ".zst": zst}


def read(path, account=None, **options):
    """(documents, account) of a file."""
    account = account or Account()
    (file,) = find_files([str(path)], "auto", account)
    (part,) = cut(file, max(1, file.num_bytes))
    return list(read_warc(part, RawOptions(**options), account)), account


def texts(path, **options):
    return [document.text for document in read(path, **options)[0]]
