"""Lists of links without texts: which pages of a crawl are wanted, as in WebText (pages that readers gave 3 points).

    wanted = read_links("links.jsonl", min_score=3)
    keep = normalise_url(document.url) in wanted

Two addresses of one page are one address here, as far as that is safe to say: case of scheme and host, `http` and
`https`, `www.`, default port, fragment, trailing slash, the order of nothing, parameters that only track the reader.
"""

from __future__ import annotations

import math
import re
import urllib.parse
from collections.abc import Iterable
from typing import Any

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.records import find_records, read_records
from jaxlm.corpus.text import Tally
from jaxlm.types import UserError

_TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|gclsrc|dclid|gbraid|wbraid|msclkid|twclid|yclid|igshid|igsh|mc_cid|mc_eid|mkt_tok|_ga|_gl|"
    r"_hsenc|_hsmi|__hstc|__hssc|__hsfp|hsctatracking|ref_src|ref_url|oly_anon_id|oly_enc_id|vero_id|spm|scid|cmpid|"
    r"s_cid|ncid|ocid|wt\.mc_id|trk|trkcampaign|at_medium|at_campaign",
    re.IGNORECASE,
)
_PORTS = {"http": 80, "https": 443}
_URL_COLUMNS = ("url", "link", "uri", "href")
_SCORE_COLUMNS = ("score", "karma", "points", "upvotes")


def normalise_url(url: str) -> str | None:
    """The address by which a page is compared, without its scheme: `example.org/a?b=1`; None where it is none.

    `http://www.Example.org:80/a/?utm_source=x&b=1#top` and `https://example.org/a?b=1` are one.
    """
    text = url.strip()
    if re.match(r"[a-z][a-z0-9+.-]*:(?!//|\d)", text, re.IGNORECASE):
        return None  # mailto:, javascript:
    if "://" not in text[:12]:
        text = f"http://{text.removeprefix('//')}"
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = (parts.hostname or "").rstrip("."), parts.port
        host = host.encode("idna").decode() if not host.isascii() else host
    except (ValueError, UnicodeError):
        return None
    if parts.scheme not in _PORTS or "." not in host and ":" not in host and host != "localhost":
        return None
    host = host.removeprefix("www.")
    if not host or re.search(r"[\s<>\"{}|\\^`]", host):
        return None
    if ":" in host:
        host = f"[{host}]"
    if port is not None and port not in _PORTS.values():
        host = f"{host}:{port}"
    path = urllib.parse.quote(urllib.parse.unquote(parts.path, errors="surrogateescape"), safe="/~!$&'()*+,;=:@-._",
                              errors="surrogateescape")  # fmt: skip
    path = re.sub(r"/{2,}", "/", path).rstrip("/")
    kept = [p for p in parts.query.split("&") if p and not _TRACKING.fullmatch(p.partition("=")[0])]
    return f"{host}{path}{'?' if kept else ''}{'&'.join(kept)}"


def read_links(path: str, min_score: float | None = None) -> set[str]:
    """The normalised addresses of a list: a text file with one on each line, or records with a column for them.

    Args:
      path: a .txt file (which may have a score behind each address, after white space), or .jsonl, .json, .csv, .tsv or
        .parquet with a column url, link, uri or href, and perhaps score, karma, points or upvotes; a folder or glob of
        these; or a data set of the hub.
      min_score: links with less, or without a score, are left out.
    """
    rows = _text_rows(path) if re.search(r"\.(?:txt|urls?|lst)$", path, re.IGNORECASE) else _record_rows(path)
    wanted: set[str] = set()
    for url, score in rows:
        if min_score is None or (score is not None and score >= min_score):
            normal = normalise_url(url)
            if normal is not None:
                wanted.add(normal)
    if not wanted:
        raise UserError(
            f"{path} holds no link{'' if min_score is None else f' with a score of at least {min_score:g}'}: every "
            "page would be left out. Give a list of addresses, one on each line or in a column url."
        )
    return wanted


def _text_rows(path: str) -> Iterable[tuple[str, float | None]]:
    from jaxlm.data.files import reachable

    source = reachable(path)
    try:
        stream = source.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): give a list of links.") from None
    with stream:
        for line in stream:
            words = line[:10_000].decode("utf-8", "replace").lstrip("\ufeff").split()
            if words and not words[0].startswith("#"):
                yield words[0], as_score(words[1]) if len(words) > 1 else None


def _record_rows(path: str) -> Iterable[tuple[str, float | None]]:
    tally = Tally()
    for file in find_records(path, tally):
        for record in read_records(file, "replace", tally):
            url = next((record.fields[name] for name in _URL_COLUMNS if name in record.fields), None)
            score = next((record.fields[name] for name in _SCORE_COLUMNS if name in record.fields), None)
            if first := first_url(url):
                yield first, as_score(score)


def first_url(value: Any) -> str | None:
    """The first address of a value that may be one, several in a list, or several with white space between them."""
    if isinstance(value, list):
        value = next((one for one in value if isinstance(one, str) and one.strip()), None)
    words = value.split(None, 1) if isinstance(value, str) else []
    return words[0] if words else None


def as_score(value: Any) -> float | None:
    """A score that may be written as a text; None where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def keep_linked(url: str | None, wanted: set[str], account: Account) -> bool:
    """Whether a page of a crawl is on the list; the others are counted as `not_linked`."""
    if url is not None and normalise_url(url) in wanted:
        return True
    account.drop("not_linked", url or "")
    return False
