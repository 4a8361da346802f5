"""Configs from anybody: flags, the config.json of a run, the config.json of a Hugging Face checkpoint."""

import json
from pathlib import Path

import pytest
from hostile import NAMES, VALUES, damaged_bytes, damaged_json, dumps, fuzz, refused
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.config import key_names, to_json
from jaxlm.interop.hf_import import read_classes, read_hf_config
from jaxlm.runconfig import RunConfig, load_config, parse, resolve
from jaxlm.types import UserError

KEYS = sorted(key.replace("<name>", "a") for key in key_names(RunConfig))
GOOD = json.loads(to_json(resolve(parse(["--config=quickstart"]))))
TEXTS = st.one_of(
    st.sampled_from(
        [
            "-1",
            "0",
            "1e99",
            "nan",
            "inf",
            "None",
            "true",
            "[]",
            "{}",
            "9" * 5000,
            "'",
            '"',
            "a b",
            "=",
            "--",
            "1_0",
        ]
    ),
    st.sampled_from(NAMES),
    st.text(max_size=10),
)


@fuzz(200)
@given(pairs=st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=12), TEXTS), min_size=1, max_size=3))
def test_flags_of_any_values_make_a_config_or_are_refused(pairs):
    with refused():
        resolve(parse(["--config=quickstart", *(f"--config.{key}={value}" for key, value in pairs)]))


@fuzz(150)
@given(content=damaged_json(GOOD).map(dumps) | damaged_bytes(dumps(GOOD)))
def test_a_saved_config_of_any_values_is_read_or_refused(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(content)
    with refused():
        load_config(path)


HF = {
    name: json.loads(path.read_bytes())
    for path in sorted(Path(__file__).parents[1].glob("interop/golden/*/config.json"))
    for name in [path.parent.name]
}


@pytest.mark.parametrize("name", HF)
def test_a_config_of_hugging_face_of_any_values_is_read_or_refused(name, tmp_path):
    path = tmp_path / "config.json"

    @fuzz(60)
    @given(value=damaged_json(HF[name]))
    def check(value):
        path.write_bytes(dumps(value))
        with refused():
            read_hf_config(tmp_path)
        with refused():
            read_classes(tmp_path, 3)

    check()


@fuzz(100)
@given(
    key=st.sampled_from(
        "num_hidden_layers hidden_size vocab_size layer_types rope_scaling num_attention_heads intermediate_size "
        "sliding_window head_dim id2label architectures".split()
    ),
    name=st.sampled_from(sorted(HF)),
    value=VALUES,
)
def test_a_size_of_any_value_is_read_or_refused(key, name, value, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    (folder / "config.json").write_bytes(dumps({**HF[name], key: value}))
    with refused():
        read_hf_config(folder)


@pytest.mark.parametrize("num_layers", [10**9, 10**6, 10**30, -1, "abc", 1e99, [[1]], None, True])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text", "llama"])
def test_a_model_of_a_billion_layers_is_refused_at_once(num_layers, model_type, tmp_path):
    """Some families write out what each layer is."""
    base = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 99,
            "max_window_layers": 2, "use_sliding_window": True, "sliding_window": 8}  # fmt: skip
    (tmp_path / "config.json").write_bytes(
        dumps({**base, "model_type": model_type, "num_hidden_layers": num_layers})
    )
    with pytest.raises(UserError, match="num_hidden_layers|num_layers"):
        read_hf_config(tmp_path)
