"""Text from the bytes of pages that say the right encoding, the wrong one, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.corpus.raw.encoding import codec_of, decode_page

FRENCH = "Où est le café ? Une crème brûlée, s'il vous plaît. " * 4
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 4
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 4
CHINESE = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？" * 4
BENGALI = "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি।" * 4


def meta(charset):
    return f'<html><head><meta charset="{charset}"></head><body>'


@pytest.mark.parametrize(
    ("text", "codec", "label"),
    [
        (FRENCH, "utf-8", "utf-8"), (FRENCH, "latin-1", "ISO-8859-1"), (FRENCH, "cp1252", "windows-1252"),
        (RUSSIAN, "cp1251", "windows-1251"), (RUSSIAN, "koi8-r", "KOI8-R"), (RUSSIAN, "utf-8", "UTF8"),
        (JAPANESE, "shift_jis", "Shift_JIS"), (JAPANESE, "euc_jp", "EUC-JP"), (JAPANESE, "iso2022_jp", "ISO-2022-JP"),
        (CHINESE, "gbk", "gb2312"), (CHINESE, "gb18030", "GB18030"), (BENGALI, "utf-8", "utf-8"),
        (BENGALI, "utf-16-le", "UTF-16LE"),
    ],
)  # fmt: skip
def test_an_encoding_that_is_declared_is_used(text, codec, label):
    body = (meta("x-none") + text).encode(codec)
    assert decode_page(body, label).text == meta("x-none") + text
    if not codec.startswith("utf-16"):
        body = (meta(label) + text).encode(codec)
        decoded = decode_page(body)
        assert (decoded.text, decoded.notes) == (meta(label) + text, ())


@pytest.mark.parametrize(
    ("text", "codec", "label"),
    [
        (FRENCH, "utf-8", "iso-8859-1"), (RUSSIAN, "utf-8", "windows-1251"), (BENGALI, "utf-8", "shift_jis"),
        (FRENCH, "cp1252", "utf-8"), (RUSSIAN, "cp1251", "utf-8"), (JAPANESE, "euc_jp", "utf-8"),
        (FRENCH, "utf-8", "utf-16"), (JAPANESE, "euc_jp", "shift_jis"),
    ],
)  # fmt: skip
def test_an_encoding_that_is_declared_wrongly_is_found_out(text, codec, label):
    decoded = decode_page((meta(label) + text).encode(codec), label)
    assert decoded.text == meta(label) + text
    assert decoded.notes == ("mislabelled",)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        (FRENCH, "cp1252"),
        (RUSSIAN, "cp1251"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (BENGALI, "utf-8"),
    ],
)
def test_an_encoding_that_is_not_declared_is_detected(text, codec):
    assert decode_page(text.encode(codec)) == (
        text,
        {"utf-8": "utf-8", "shift_jis": "cp932"}.get(codec, codec),
        (),
    )


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_goes_and_wins(codec):
    assert decode_page(BENGALI.encode(codec), "windows-1252").text == BENGALI


def test_utf8_with_a_broken_byte_stays_utf8():
    body = BENGALI.encode()
    decoded = decode_page(body[:12] + b"\xff" + body[12:-1], "utf-8")
    assert decoded.text.count("\ufffd") == 2
    assert decoded.text.replace("\ufffd", "") == BENGALI[:-1]
    assert decoded.notes == ("undecodable",)


@pytest.mark.parametrize(
    ("label", "codec"),
    [("latin1", "cp1252"), ("ASCII", "cp1252"), (' "UTF-8" ', "utf-8"), ("gb2312", "gb18030"), ("x-sjis", "cp932"),
     ("utf-7", None), ("rot13", None), ("idna", None), ("", None), (None, None), ("bogus", None), ("\udce9", None)],
)  # fmt: skip
def test_names_mean_what_they_mean_in_browsers(label, codec):
    assert codec_of(label) == codec


LABELS = [
    "utf-8",
    "utf-16",
    "utf-16be",
    "gbk",
    "big5",
    "euc-kr",
    "shift_jis",
    "iso-2022-jp",
    "koi8-u",
    "tis-620",
]


@given(st.binary(max_size=300), st.one_of(st.none(), st.text(max_size=12), st.sampled_from(LABELS)))
def test_any_bytes_are_text_without_surrogates(body, charset):
    decode_page(body, charset).text.encode()
