"""Every family, live: what transformers saves gives its logits here, and what jaxlm exports gives ours there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers

from jaxlm.checkpoint import named_arrays
from jaxlm.infer.sample import generate
from jaxlm.interop.hf_export import export_weights, hf_config
from jaxlm.interop.hf_import import open_source, read_params
from jaxlm.models.build import build

NAMES = list(tiny.CONFIGS)


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """(the model of transformers, source, lm, params)."""
    model, folder = tiny.make(request.param), tmp_path_factory.mktemp(request.param)
    tiny.save(model, folder)
    source = open_source(folder)
    lm = build(source.model, source.model.max_seq_len or 64)
    return model, source, lm, read_params(source, lm.shapes)


def our_logits(lm, params, tokens_BT, segments_BT=None):
    batch = {"tokens": jnp.asarray(tokens_BT)}
    if segments_BT is not None:
        batch["segments"] = jnp.asarray(segments_BT, jnp.int32)
    return np.asarray(jax.jit(lambda p: lm.head(p, lm.hidden(p, batch)))(params))


def test_unpadded_padded_and_batched(pair):
    model, _, lm, params = pair
    tokens_BT, lengths_B = tiny.texts()
    real_BT = np.arange(tokens_BT.shape[1])[None] < lengths_B[:, None]
    batched = our_logits(lm, params, tokens_BT, real_BT)
    np.testing.assert_allclose(
        batched[real_BT], tiny.logits(model, tokens_BT, lengths_B)[real_BT], rtol=0, atol=1e-4
    )
    for tokens_T, length in zip(tokens_BT, lengths_B):
        alone_1T = tokens_T[None, :length]
        expected = tiny.logits(model, alone_1T, np.array([length]))
        np.testing.assert_allclose(our_logits(lm, params, alone_1T), expected, rtol=0, atol=1e-4)


def test_with_kv_cache(pair):
    model, _, lm, params = pair
    tokens_T = tiny.texts()[0][0]
    expected, num_prefill = tiny.logits_with_cache(model, tokens_T, 9), 9
    extend, cache, found = jax.jit(lm.extend), lm.init_cache(1, len(tokens_T)), []
    for start, stop in [(0, num_prefill), *((i, i + 1) for i in range(num_prefill, len(tokens_T)))]:
        x_1TD, cache = extend(
            params, jnp.asarray(tokens_T[None, start:stop]), jnp.arange(start, stop)[None], cache
        )
        found.append(x_1TD)
    logits_TV = lm.head(params, jnp.concatenate(found, axis=1))[0]
    np.testing.assert_allclose(logits_TV, expected, rtol=0, atol=1e-4)


def test_greedy_generation_token_for_token(pair):
    model, _, lm, params = pair
    prompts = [tiny.texts()[0][0, :11].tolist(), tiny.texts()[0][1, :7].tolist()]
    ours = generate(lm, params, prompts, max_new_tokens=20, temperature=0.0)
    for prompt, one in zip(prompts, ours):
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        assert one.tokens == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("max_shard_bytes", [1 << 40, 5000])
def test_import_then_export_changes_no_bit_and_transformers_loads_it(pair, max_shard_bytes, tmp_path):
    model, source, _, params = pair
    export_weights(tmp_path, source.family, named_arrays(params), max_shard_bytes=max_shard_bytes)
    config = hf_config(
        source.family, source.model, dtype="float32", context_tokens=64, bos_id=1, eos_ids=[2], pad_id=0
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(again) is type(model)
    theirs = dict(model.state_dict())
    assert set(again.state_dict()) == set(theirs)
    for name, value in again.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    tokens_BT, lengths_B = tiny.texts()
    np.testing.assert_array_equal(
        tiny.logits(again, tokens_BT, lengths_B), tiny.logits(model, tokens_BT, lengths_B)
    )
