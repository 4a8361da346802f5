"""Lists of links: one page has one address, and pages of a crawl are kept by it."""

import json

import pytest

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.links import as_score, first_url, keep_linked, normalise_url, read_links
from jaxlm.types import UserError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://www.Example.org:80/a/?utm_source=x&b=1#top", "example.org/a?b=1"),
        ("https://example.org/a?b=1", "example.org/a?b=1"),
        ("https://example.org:443", "example.org"),
        ("http://example.org:8080/", "example.org:8080"),
        ("example.org/A", "example.org/A"),
        ("//example.org/a//b/", "example.org/a/b"),
        ("HTTP://EXAMPLE.ORG/?FBCLID=1&gclid=2&_ga=3", "example.org"),
        ("http://example.org/?b=2&a=1&b=2", "example.org?b=2&a=1&b=2"),
        ("http://example.org/a?ref=x&page=2", "example.org/a?ref=x&page=2"),
        ("http://example.org/%7Euser/%41%20b", "example.org/~user/A%20b"),
        ("http://example.org/a b", "example.org/a%20b"),
        ("https://bn.wikipedia.org/wiki/ঢাকা", "bn.wikipedia.org/wiki/%E0%A6%A2%E0%A6%BE%E0%A6%95%E0%A6%BE"),
        ("https://bücher.example/ä", "xn--bcher-kva.example/%C3%A4"),
        ("http://user:pw@example.org/", "example.org"),
        ("http://[::1]:8080/a", "[::1]:8080/a"),
        ("http://www.com/", "com"),
        ("ftp://example.org/a", None),
        ("mailto:a@b.c", None),
        ("javascript:void(0)", None),
        ("word", None),
        ("", None),
        ("http://", None),
        ("http://[::1/", None),
        ("http://a.b:99999/", None),
        ("http://a b.c/", None),
    ],
)
def test_addresses_of_one_page_are_one(url, expected):
    assert normalise_url(url) == expected


def test_normalising_twice_changes_nothing():
    for url in ("http://www.a.b/%25/x?y=%20#z", "https://a.b:8443//c/", "ä.b/ü"):
        once = normalise_url(url)
        assert once is not None
        assert normalise_url(f"http://{once}") == once


def test_a_list_with_scores_keeps_those_at_and_above(tmp_path):
    rows = [
        {"url": "https://www.a.org/x/", "score": 3},
        {"url": "b.org", "score": "4"},
        {"url": "c.org", "score": 2.9},
        {"url": "d.org", "score": None},
        {"url": None, "score": 9},
        {"url": ["e.org", "f.org"], "score": 5},
        {"url": "g.org h.org", "score": 5},
        {"url": "mailto:x", "score": 5},
    ]
    path = tmp_path / "links.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_links(str(path), 3) == {"a.org/x", "b.org", "e.org", "g.org"}
    assert len(read_links(str(path))) == 6
    (tmp_path / "links.csv").write_text("karma,link\n5,http://a.org\n1,http://b.org\n")
    assert read_links(str(tmp_path / "links.csv"), 3) == {"a.org"}


def test_a_text_file_of_links(tmp_path):
    path = tmp_path / "urls.txt"
    path.write_text("\ufeff# from somewhere\nhttp://a.org/1\n\nhttps://b.org\t7\nc.org 2\n")
    assert read_links(str(path)) == {"a.org/1", "b.org", "c.org"}
    assert read_links(str(path), 3) == {"b.org"}


def test_a_list_that_would_keep_nothing_is_refused(tmp_path):
    path = tmp_path / "urls.txt"
    path.write_text("http://a.org 1\n")
    with pytest.raises(UserError, match=r"urls\.txt holds no link with a score of at least 3: every page"):
        read_links(str(path), 3)
    with pytest.raises(UserError, match=r"none\.txt"):
        read_links(str(tmp_path / "none.txt"))


def test_pages_that_are_not_linked_are_counted():
    account = Account()
    wanted = {"a.org/x"}
    assert keep_linked("https://www.a.org/x?utm_medium=y", wanted, account)
    assert not keep_linked("https://a.org/y", wanted, account)
    assert not keep_linked(None, wanted, account)
    assert account.dropped == {"not_linked": 2}


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (3, 3.0),
        ("4.5", 4.5),
        (True, None),
        ("nan", None),
        (float("inf"), None),
        ("x", None),
        (None, None),
        (10**400, None),
    ],
)
def test_scores(value, score):
    assert as_score(value) == score


def test_of_several_addresses_the_first_counts():
    assert first_url(["", None, "a.org"]) == "a.org"
    assert first_url(" a.org  b.org") == "a.org"
    assert [first_url(v) for v in ("", [], None, 3, {})] == [None] * 5
