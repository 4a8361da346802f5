"""The report of a corpus: golden numbers, lines of a terminal, a page that shows foreign text as text."""

import copy
import json
import re

import pytest

from jaxlm.corpus.raw import report as reports
from jaxlm.corpus.raw.report_page import page
from jaxlm.types import UserError

SOURCE = {
    "num_files": 2, "num_input_bytes": 4000, "documents_read": 100, "text_bytes_read": 30_000, "documents_passed": 70,
    "text_bytes_passed": 20_000, "exact_copies": 6, "near_copies": 4, "documents_kept": 60, "text_bytes_kept": 16_000,
    "train_tokens": 3_900, "eval_tokens": 100, "bytes_per_token": 4.0, "weight": 0.75, "epochs": 1.5,
    "language_bytes": {"en": 15_000, "bn": 5_000}, "dropped": {"short": 30}, "changed": {"crlf": 2},
    "faults": {"truncated_gzip": 1}, "examples": {"truncated_gzip": ["a.wet, offset 7: <b>&\x1b[31m"]},
    "sha256": "0" * 64,
}  # fmt: skip
REPORT = {
    "format": reports.FORMAT, "sources": {"crawl": SOURCE, "books": SOURCE | {"epochs": None, "faults": {}}},
    "budget_tokens": 7800.0, "tokenizer_sha256": "0" * 64, "vocab_size": 400, "seconds": {"read": 2.5},
    "disk_bytes": {"read": 123},
}  # fmt: skip


def test_the_terminal_has_a_line_for_each_source_and_what_went():
    lines = list(reports.lines(REPORT))
    assert (
        lines[0].split()
        == "source files read passed copies kept train tokens bytes/token weight epochs".split()
    )
    assert lines[1].split() == "crawl 2 100 70 10 60 3,900 4.00 0.750 1.5".split()
    assert lines[2].split() == "books 2 100 70 10 60 3,900 4.00 0.750 -".split()
    assert lines[3:] == [
        "crawl: dropped: short 30", "books: dropped: short 30", "crawl: changed: crlf 2", "books: changed: crlf 2",
        "crawl: faults: truncated_gzip 1",
    ]  # fmt: skip


def test_text_of_documents_is_text_on_the_page():
    shown = page(REPORT)
    assert "a.wet, offset 7: &lt;b&gt;&amp;" in shown
    assert "<b>" not in shown
    assert "\x1b" not in shown
    assert not re.search(r"<script|<link|src=|https?://", shown)


def test_bars_are_as_long_as_their_shares():
    """760 wide, 150 for the label and 90 for the sum: 520 for the largest, here 100 documents."""
    shown = page(REPORT)
    widths = {
        match[2]: float(match[1])
        for match in re.finditer(
            r'width="([\d.]+)" height="18"[^>]*><title>crawl, ([a-z ]+): [\d,]+ documents', shown
        )
    }
    assert widths == {"kept": 312.0, "exact copies": 31.2, "near copies": 20.8, "dropped by a filter": 156.0}
    assert "crawl, bn: 5,000 bytes (25.0%)" in shown
    assert "Epochs: of a run of 7,800 tokens." in shown


def test_a_report_with_nothing_in_it_has_a_page():
    empty = copy.deepcopy(REPORT)
    for source in empty["sources"].values():
        source.update({key: 0 for key, value in source.items() if isinstance(value, int)}, language_bytes={})
    assert "<svg" in page(empty)


def test_what_is_no_report_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no corpus of `jaxlm corpus build --config`, or not finished"):
        reports.read_report(str(tmp_path))
    reports.write_report(str(tmp_path), REPORT)
    assert reports.read_report(str(tmp_path)) == json.loads(json.dumps(REPORT))
    (tmp_path / reports.REPORT).write_text('{"format": "1"}')
    with pytest.raises(UserError, match=r"report\.json is damaged .*build again"):
        reports.read_report(str(tmp_path))
