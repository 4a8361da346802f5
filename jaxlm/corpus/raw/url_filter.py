"""Pages that are left out for their address, by the lists that lie in datatrove's wheel and one of the user's.

The rules are those of datatrove's URLFilter (RefinedWeb, Penedo et al. 2023, arXiv:2306.01116, appendix G.1). Its
code is not used: it holds 4.6 million hosts as Python strings in every process (800 MB), unpacks its lists into the
cache of Hugging Face, needs tldextract, which fetches its list of suffixes, fails on a document without an address,
and compares whole addresses, `https://` and all, with a list that has none, so that no address ever matches. Here the
hosts are 8 bytes each in one file of the cache, which every process maps; a host is compared with every suffix of two
labels or more.
"""

from __future__ import annotations

import importlib.resources
import io
import os
import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import xxhash
from datatrove.data import Document

from jaxlm.corpus.raw.steps import Verdict
from jaxlm.data.files import make_folder, write_atomic
from jaxlm.paths import cache_root
from jaxlm.types import UserError

ARCHIVE = "url_filterblacklistsv0_3_0.tar.gz"
_BLOCK_BYTES = 8 << 20
SOFT_WORDS = 2
"""Words of the soft list in one address that drop it."""
_APART = re.compile(r"[^a-z0-9]+")
_SCHEME = re.compile(r"^[a-z][a-z0-9+.\-]*://", re.IGNORECASE)


class HashSet:
    """A set of strings by their 64-bit hashes, ascending: 8 bytes each. Among five million, one string in four
    million million is taken for a member though it is none."""

    def __init__(self, hashes: np.ndarray):
        self.hashes = hashes

    def __contains__(self, string: str) -> bool:
        wanted = np.uint64(xxhash.xxh64_intdigest(string.encode("utf-8", "replace")))
        place = int(np.searchsorted(self.hashes, wanted))
        return place < len(self.hashes) and bool(self.hashes[place] == wanted)

    def __len__(self) -> int:
        return len(self.hashes)


class UrlFilter:
    """Decides on addresses. The lists are opened at the first document, in each process.

    Args:
      block_list: a file of more hosts and addresses.
      cache_dir: where the hosts' hashes are kept, 36 MB; made in some seconds the first time.
    """

    def __init__(self, block_list: str | None = None, cache_dir: str | None = None):
        self.block_list = block_list
        self.cache_dir = cache_dir
        self._lists: _Lists | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lists": None}

    def check(self) -> None:
        """UserError where a list cannot be read; makes the file of hashes."""
        if self._lists is None:
            self._lists = _Lists(self.block_list, self.cache_dir)

    def filter(self, document: Document) -> Verdict:
        """Keeps a document without an address: a book, an article of a dump."""
        url = document.metadata.get("url")
        return self.decide(url) if url else True

    def decide(self, url: str) -> Verdict:
        """(False, reason) for an address that is to be left out; else True."""
        self.check()
        lists = self._lists
        assert lists is not None
        address = bare(url)
        host = host_of(address)
        for name in _with_parents(host):
            if name in lists.own or name in lists.hosts:
                return False, "subdomain" if name == host and name.count(".") > 1 else "domain"
        if address in lists.own or address in lists.addresses:
            return False, "address"
        lower = url.lower()
        words = set(_APART.split(lower))
        if not words.isdisjoint(lists.hard_words):
            return False, "hard_word"
        if len(words & lists.soft_words) >= SOFT_WORDS:
            return False, "soft_words"
        joined = _APART.sub("", lower)
        if any(part in joined for part in lists.parts):
            return False, "part_of_word"
        return True


def bare(url: str) -> str:
    """The address without scheme, `www.` and closing slash, its host in small letters: as lists have it."""
    host, slash, path = _SCHEME.sub("", url.strip()).partition("/")
    return (host.lower().removeprefix("www.") + slash + path).rstrip("/")


def host_of(address: str) -> str:
    """The host of a bare address, without user, port and closing dot."""
    host = re.split(r"[/?#]", address, maxsplit=1)[0]
    return host.rpartition("@")[2].partition(":")[0].rstrip(".").removeprefix("www.")


def _with_parents(host: str) -> Iterator[str]:
    """`a.b.example.com` -> itself, `b.example.com`, `example.com`; not the top alone."""
    labels = host.split(".")
    yield from (".".join(labels[start:]) for start in range(max(1, len(labels) - 1)))


class _Lists:
    """The open lists."""

    def __init__(self, block_list: str | None, cache_dir: str | None):
        self.hosts, self.addresses = _shipped(cache_root(cache_dir))
        self.own = frozenset(_read_own(block_list)) if block_list else frozenset()
        self.hard_words = _words("banned_words.txt")
        self.soft_words = _words("soft_banned_words.txt")
        self.parts = tuple(sorted(_words("banned_subwords.txt"), key=len))


def _asset(name: str) -> Any:
    return importlib.resources.files("datatrove") / "assets" / name


def _words(name: str) -> frozenset[str]:
    lines = _asset(name).read_text(encoding="utf-8").splitlines()
    return frozenset(
        _APART.sub("", line.lower()) for line in lines if line.strip() and not line.startswith("#")
    )


def _read_own(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"filters.url_block_list={path!r} cannot be read ({error}): give a text file, a host a line."
        ) from None
    for line in lines:
        entry = line.partition("#")[0].strip()
        if entry:
            yield bare(entry)


def _shipped(cache: str) -> tuple[HashSet, HashSet]:
    """Hosts and addresses of datatrove's lists, as hashes in the cache."""
    archive = _asset(ARCHIVE)
    folder = os.path.join(
        cache, "url_lists", f"{ARCHIVE.removesuffix('.tar.gz')}-{os.path.getsize(str(archive))}"
    )
    paths = {name: os.path.join(folder, f"{name}.npy") for name in ("domains", "urls")}
    for attempt in range(2):
        try:
            found = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths.values()]
            if all(_is_sorted_list(hashes) for hashes in found):
                return HashSet(found[0]), HashSet(found[1])
        except (OSError, ValueError, EOFError):
            pass  # not made yet, or damaged: it is made again
        if attempt == 0:
            _make(str(archive), folder, paths)
    raise UserError(
        f"{folder} cannot be read back: is the disk full? Choose another place with $JAXLM_CACHE."
    )


def _is_sorted_list(hashes: np.ndarray) -> bool:
    return hashes.dtype == np.uint64 and hashes.ndim == 1 and len(hashes) > 0


def _make(archive: str, folder: str, paths: dict[str, str]) -> None:
    make_folder(folder)
    with tarfile.open(archive, "r:gz") as tar:
        for name, path in paths.items():
            member = tar.extractfile(name)
            assert member is not None, f"{archive} has no {name}"
            found = [_hashes_of(block) for block in _line_blocks(member)]
            content = io.BytesIO()
            np.save(content, np.unique(np.concatenate(found)))
            write_atomic(path, content.getvalue())


def _line_blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The stream in pieces of whole lines."""
    rest = b""
    while block := stream.read(_BLOCK_BYTES):
        lines, _, rest = (rest + block).rpartition(b"\n")
        yield lines
    yield rest


def _hashes_of(block: bytes) -> np.ndarray:
    # As in `bare`: "www." and a closing slash go.
    lines = (b"\n" + block + b"\n").replace(b"\nwww.", b"\n").replace(b"/\n", b"\n").split(b"\n")
    return np.fromiter(map(xxhash.xxh64_intdigest, filter(None, lines)), np.uint64)
