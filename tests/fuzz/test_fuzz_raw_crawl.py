"""Damaged crawls: nothing but UserError, and all that lies before the damage."""

import contextlib
import random
import sys
from pathlib import Path

import pytest
from hostile import damaged_bytes, fuzz, refused
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.corpus.raw.document import Account

sys.path.append(str(Path(__file__).parents[1] / "corpus" / "raw"))
from warc_files import PACK, html_of, page, read, record  # noqa: E402

DRAW = random.Random(0)
TEXTS = [f"Record {n}: " + " ".join(str(DRAW.randrange(10**6)) for _ in range(30)) for n in range(6)]
WET = [record("conversion", text.encode(), n) for n, text in enumerate(TEXTS)]
WARC = [record("response", page(html_of(text)), n) for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(("kind", "records"), [("wet", WET), ("warc", WARC)])
def test_records_before_and_behind_damage_are_all_there(kind, records, suffix, tmp_path):
    path = tmp_path / f"a.{kind}{suffix}"
    packed = [PACK[suffix](one) for one in records]

    @fuzz(80)
    @given(which=st.integers(0, len(records) - 1), data=st.data())
    def check(which, data):
        broken = data.draw(damaged_bytes(packed[which]))
        path.write_bytes(b"".join([*packed[:which], broken, *packed[which + 1 :]]))
        documents, account = read(path)
        found = [document.text for document in documents]
        assert found[:which] == TEXTS[:which]
        behind = TEXTS[which + 1 :]
        # Damage may reach over the next record where the broken one ends in the middle of something.
        assert found[len(found) - len(behind) + 1 :] == behind[1:] if len(behind) > 1 else True
        if broken == packed[which]:
            assert found == TEXTS
            assert not account.faults

    check()


@pytest.mark.parametrize("suffix", PACK)
def test_a_file_of_any_damage_is_read_or_refused(suffix, tmp_path):
    path = tmp_path / f"a.warc{suffix}"
    whole = b"".join(PACK[suffix](one) for one in (*WET[:3], *WARC[:3]))
    one_member = PACK[suffix](b"".join((*WET[:3], *WARC[:3])))

    @fuzz(80)
    @given(content=st.one_of(damaged_bytes(whole), damaged_bytes(one_member)), strict=st.booleans())
    def check(content, strict):
        path.write_bytes(content)
        documents = []
        with refused() if strict else contextlib.nullcontext():
            documents, _ = read(path, Account(strict=strict))
        assert all(document.text and document.file == path.name for document in documents)

    check()


ENCODINGS = [
    {"Transfer_Encoding": "chunked"},
    {"Content_Encoding": "gzip"},
    {"Content_Encoding": "br, deflate"},
]


@pytest.mark.parametrize("headers", ENCODINGS)
def test_any_body_of_a_page_is_read_or_counted(headers, tmp_path):
    path = tmp_path / "a.warc"
    good = PACK[".gz"](html_of("text"))

    @fuzz(80)
    @given(
        body=st.one_of(st.binary(max_size=80), damaged_bytes(good), damaged_bytes(b"5\r\nhello\r\n0\r\n\r\n"))
    )
    def check(body):
        path.write_bytes(record("response", page(body, **headers), 1) + WARC[2])
        documents, _ = read(path)
        assert documents[-1].text == TEXTS[2]

    check()
