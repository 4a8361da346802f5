"""Pages that are left out for their address."""

import io
import tarfile

import numpy as np
import pytest
from datatrove.data import Document

from jaxlm.corpus.raw import url_filter
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.filter_config import FilterConfig
from jaxlm.corpus.raw.filters import build_filters
from jaxlm.corpus.raw.url_filter import UrlFilter
from jaxlm.types import UserError


@pytest.fixture
def small_lists(tmp_path, monkeypatch):
    """An archive like datatrove's, with few entries; the lists of words are datatrove's."""
    archive = tmp_path / url_filter.ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        for name, lines in {
            "domains": "bad.com\nwww.worse.org\nx.hosted.net\nlone\n",
            "urls": "ok.com/bad/page\nwww.ok.org/worse/\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(lines)
            tar.addfile(entry, io.BytesIO(lines.encode()))
    real = url_filter._asset
    monkeypatch.setattr(
        url_filter, "_asset", lambda name: archive if name == url_filter.ARCHIVE else real(name)
    )
    return str(tmp_path / "cache")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://en.wikipedia.org/wiki/Dhaka", None),
        ("https://bad.com/x", "domain"),
        ("http://www.BAD.com:8080/x?y#z", "domain"),
        ("https://a.b.bad.com", "domain"),
        ("https://notbad.com/", None),
        ("https://user@worse.org./", "domain"),
        ("https://x.hosted.net/", "subdomain"),
        ("https://y.hosted.net/", None),
        ("https://a.lone/", None),
        ("https://ok.com/bad/page", "address"),
        ("http://www.ok.com/bad/page/", "address"),
        ("http://ok.org/worse", "address"),
        ("https://ok.com/bad", None),
        ("https://ok.com/AssMunch/page", "hard_word"),
        ("https://ok.com/lingerie/babes", "soft_words"),
        ("https://ok.com/lingerie/shop", None),
        ("https://hot-chicks.example/", "part_of_word"),
        ("not an address", None),
        ("//", None),
        ("https://", None),
        ("https://উদাহরণ.বাংলা/পাতা", None),
        ("x" * 100_000, None),
    ],
)
def test_each_rule_on_addresses(url, reason, small_lists, no_network):
    answer = UrlFilter(cache_dir=small_lists).decide(url)
    assert answer == (True if reason is None else (False, reason))


def test_a_document_without_an_address_is_kept(small_lists):
    rule = UrlFilter(cache_dir=small_lists)
    assert rule.filter(Document("text", "x")) is True
    assert rule.filter(Document("text", "x", metadata={"url": None})) is True


def test_a_list_of_the_users_own(small_lists, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("# ours\nhttps://www.Mine.example/\nother.example/page  # one page\n\n")
    rule = UrlFilter(str(path), small_lists)
    assert rule.decide("https://sub.mine.example/x") == (False, "domain")
    assert rule.decide("https://other.example/page/") == (False, "address")
    assert rule.decide("https://other.example/") is True
    with pytest.raises(UserError, match="url_block_list='.*none.txt' cannot be read"):
        UrlFilter(str(tmp_path / "none.txt"), small_lists).check()


def test_a_damaged_list_in_the_cache_is_made_again(small_lists, tmp_path):
    UrlFilter(cache_dir=small_lists).check()
    (path,) = (tmp_path / "cache").rglob("domains.npy")
    good = path.read_bytes()
    np.save(path, np.zeros(3))
    assert UrlFilter(cache_dir=small_lists).decide("https://bad.com/") == (False, "domain")
    path.write_bytes(good[:20])
    assert UrlFilter(cache_dir=small_lists).decide("https://bad.com/") == (False, "domain")
    assert path.read_bytes() == good


def test_the_account_names_the_address(small_lists):
    account = Account()
    (step, _) = build_filters(
        FilterConfig(gopher_quality=False, gopher_repetition=False, c4=False, fineweb=False),
        account,
        cache_dir=small_lists,
    )
    assert list(step(iter([Document("text", "x", metadata={"url": "https://bad.com/x"})]))) == []
    assert account.dropped == {"url_domain": 1}
    assert account.examples["url_domain"] == ["x: https://bad.com/x"]


@pytest.mark.slow
def test_the_lists_in_datatroves_wheel(tmp_path, no_network):
    rule = UrlFilter(cache_dir=str(tmp_path))
    rule.check()
    assert rule.decide("https://en.wikipedia.org/") is True
    with tarfile.open(str(url_filter._asset(url_filter.ARCHIVE))) as tar:
        for name in ("domains", "urls"):
            lines = tar.extractfile(name).read(1 << 20).decode().splitlines()[1:-1:100]
            listed = [line for line in lines if "." in line]
            assert len(listed) > 50
            assert all(rule.decide(f"https://{line}") is not True for line in listed)
