"""Tokenizer files from anybody: sentencepiece models (C++), tokenizer.json (Rust) and what lies beside it."""

import json

import pytest
import small_tokenizers
from hostile import VALUES, child, damaged_files_crash_nothing, fuzz, refused
from hypothesis import given
from hypothesis import strategies as st
from slow import slow

from jaxlm.data import hf_files
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.types import UserError


@pytest.mark.parametrize(("kind", "count"), [("model", 40), slow("model", 100), ("hf", 120)])
def test_damaged_tokenizers_are_read_or_refused_and_crash_nothing(kind, count, tmp_path):
    damaged_files_crash_nothing(kind, count, tmp_path, memory_mb=4000)


KEYS = (
    "bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "extra_special_tokens",
    "added_tokens_decoder", "chat_template", "add_bos_token", "add_eos_token", "tokenizer_class", "eos_token_id",
    "bos_token_id", "content", "1", "9" * 5000,
)  # fmt: skip


@fuzz(150)
@given(
    name=st.sampled_from(
        ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"]
    ),
    value=st.dictionaries(
        st.sampled_from(KEYS), VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=4
    ),
)
def test_configs_of_any_values_beside_a_good_tokenizer_are_read_or_refused(name, value):
    from jaxlm.data.tokenizer_hf import HFTokenizer

    files = {**small_tokenizers.level(), name: json.dumps(value).encode()}
    with refused():
        HFTokenizer(files)


def test_a_tokenizer_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setitem(hf_files.MAX_BYTES, False, 1000)
    for name, content in small_tokenizers.level().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_bytes(b'{"a": "' + b"x" * 2000 + b'"}')
    with pytest.raises(UserError, match=r"tokenizer_config.json has 2,009 bytes, and at most 1,000 are read"):
        load_tokenizer(tmp_path)


def test_a_pattern_made_to_take_for_ever_ends(tmp_path):
    """The regular expressions of a tokenizer.json run in Oniguruma, which counts its steps."""
    code, output = child(
        f"""
        import json, small_tokenizers, time
        from jaxlm.data.tokenizer import load_tokenizer

        def change(spec):
            split = {{"type": "Split", "pattern": {{"Regex": "(a|aa)+$"}}, "behavior": "Isolated", "invert": False}}
            spec["pre_tokenizer"] = split
        for name, content in small_tokenizers.level(change=change).items():
            (Path({str(tmp_path)!r}) / name).write_bytes(content)
        try:
            load_tokenizer({str(tmp_path)!r}).encode("a" * 60 + "!")
        except UserError as error:
            print("refused:", error)
        """,
        seconds=60,
    )
    assert code == 0, output[-1500:]
    assert "refused: tokenizer.json fails on a text (Onig: Regex search error: retry-limit" in output
