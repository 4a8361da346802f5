"""Adapters that jaxlm writes, loaded by PEFT onto the model of transformers: the logits are those of jaxlm."""

import jax
import numpy as np
import peft
import pytest
import tiny_models as tiny
from test_families import our_logits

from jaxlm.interop.hf_import import open_source, read_params
from jaxlm.interop.peft import write_adapter
from jaxlm.models.build import build
from jaxlm.train.config import TuneConfig
from jaxlm.train.tuning import Tuning

ALL = "q,k,v,o,up,gate,down"


@pytest.mark.parametrize(
    ("name", "targets"),
    [("llama", ALL), ("llama-bias", "q,v"), ("gemma3_text", ALL), ("qwen3", "o,down"), ("mixtral", "q,k,v,o"),
     ("gpt2", ALL), ("gpt2", "k,down"), ("gpt2", "o")],
)  # fmt: skip
def test_peft_loads_adapters_with_our_logits(name, targets, tmp_path):
    model = tiny.make(name)
    tiny.save(model, tmp_path / "base")
    source = open_source(tmp_path / "base")
    lm = build(source.model, source.model.max_seq_len or 64)
    params = read_params(source, lm.shapes)
    tune = TuneConfig(train="lora", lora_rank=3, lora_alpha=5.0, lora_targets=targets)
    trained, frozen = Tuning(tune).split(Tuning(tune).init(jax.random.key(0), params))
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda w: w + 0.1 * rng.standard_normal(w.shape).astype(np.float32), trained)
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", source.family, tune, trained["layers"]["lora"], base="base")
    tokens_BT = tiny.texts()[0]
    lengths_B = np.full(len(tokens_BT), tokens_BT.shape[1])
    before = tiny.logits(model, tokens_BT, lengths_B)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    theirs = tiny.logits(loaded, tokens_BT, lengths_B)
    ours = our_logits(lm, Tuning(tune).merge(trained, frozen), tokens_BT)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.abs(theirs - before).max() > 0.05
