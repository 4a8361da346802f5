"""Tiny models as transformers saved them give the logits and gradients that transformers gave.

`make golden` renews the files; `make parity` compares with transformers itself.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import all_but, slow
from small_checkpoints import load as load_checkpoint

from jaxlm.checkpoint import named_arrays
from jaxlm.interop.hf_export import export_weights
from jaxlm.interop.hf_import import Source, open_source, read_params, used_rows
from jaxlm.models.build import build

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
VARIED = [name for name in NAMES if name not in ("gemma", "llama", "qwen2", "qwen3")]
"""Left out are those that have nothing which none of these has."""
CACHED = ("gemma2", "gemma3_text", "gpt2", "llama3")
"""Caps, local and global layers, learned positions, scaled angles. A padded batch shows what else the others have."""
WITH_GRADIENTS = ("gemma2", "llama", "mixtral")


def load(name: str, **run_fields):
    """(source, lm, float32 params, what transformers computed)."""
    source = open_source(GOLDEN / name)
    lm = build(dataclasses.replace(source.model, **run_fields), source.model.max_seq_len or 64)
    params = read_params(source, lm.shapes)
    return source, lm, params, np.load(GOLDEN / name / "expected.npz")


def test_every_family_has_a_golden_model():
    from jaxlm.interop.families import FAMILIES

    there = {open_source(GOLDEN / name).family.model_type for name in NAMES}
    assert there == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_goes_in_and_out_again_is_the_same_file(name, tmp_path):
    params = load_checkpoint(GOLDEN / name, "bfloat16")
    export_weights(tmp_path, open_source(GOLDEN / name).family, named_arrays(params))
    assert (tmp_path / "model.safetensors").read_bytes() == (GOLDEN / name / "model.safetensors").read_bytes()


@pytest.mark.parametrize("attention", [slow("dense"), "chunked"])
@pytest.mark.parametrize("name", all_but(VARIED, NAMES))
def test_logits_of_a_padded_batch_are_those_of_transformers(name, attention):
    _, lm, params, expected = load(name, attention=attention)
    real_BT = np.arange(expected["tokens"].shape[1])[None] < expected["lengths"][:, None]
    batch = {"tokens": jnp.asarray(expected["tokens"]), "segments": jnp.asarray(real_BT, jnp.int32)}
    logits_BTV = np.asarray(jax.jit(lambda params: lm.head(params, lm.hidden(params, batch)))(params))
    np.testing.assert_allclose(logits_BTV[real_BT], expected["logits"][real_BT], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", all_but(CACHED, NAMES))
def test_logits_through_the_kv_cache_are_those_of_transformers(name):
    _, lm, params, expected = load(name)
    tokens_1T, num_prefill = jnp.asarray(expected["tokens"][:1]), 9
    T = tokens_1T.shape[1]
    extend, cache, found = jax.jit(lm.extend), lm.init_cache(1, T), []
    for start, stop in [(0, num_prefill), *((i, i + 1) for i in range(num_prefill, T))]:
        x_1TD, cache = extend(params, tokens_1T[:, start:stop], jnp.arange(start, stop)[None], cache)
        found.append(x_1TD)
    logits_TV = lm.head(params, jnp.concatenate(found, axis=1))[0]
    np.testing.assert_allclose(logits_TV, expected["logits"][0], rtol=0, atol=1e-4)


def to_theirs(source: Source, params) -> dict[str, np.ndarray]:
    """Our arrays under their names, in their layout; the parts of a fused tensor are left apart."""
    named, found = named_arrays(params), {}
    for path, row in used_rows(source.family, {path: w.shape for path, w in named.items()}).items():
        names = row.names(named[path].shape)
        for index in np.ndindex(*names.shape):
            found[names[index]] = row.to_theirs(np.asarray(named[path][index]))
    return found


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients_are_those_of_torch(name):
    source, lm, params, expected = load(name)
    tokens_BT = jnp.asarray(expected["tokens"])
    counts_BT = jnp.arange(1, tokens_BT.shape[1])[None] < jnp.asarray(expected["lengths"])[:, None]

    def loss(params):
        logits_BTV = lm.head(params, lm.hidden(params, {"tokens": tokens_BT}))[:, :-1]
        logprobs_BTV = jax.nn.log_softmax(logits_BTV)
        picked_BT = jnp.take_along_axis(logprobs_BTV, tokens_BT[:, 1:, None], axis=2)[..., 0]
        return -(picked_BT * counts_BT).sum()

    ours = to_theirs(source, jax.jit(jax.grad(loss))(params))
    theirs = {key.removeprefix("grad:"): expected[key] for key in expected.files if key.startswith("grad:")}
    theirs = split_experts(theirs, ours)
    assert set(ours) == set(theirs)
    for key in ours:
        scale = np.abs(theirs[key]).max()
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-3 * scale, err_msg=key)


def split_experts(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers holds all experts of a layer in two tensors, and saves them apart: as they are saved."""
    found = {}
    for key, value in theirs.items():
        if key in ours:
            found[key] = value
        elif key.endswith("mlp.gate.weight"):
            found[key.replace("mlp.gate", "block_sparse_moe.gate")] = value
        else:
            base = key.partition("mlp.experts.")[0] + "block_sparse_moe.experts."
            parts = {"w2": value}
            if key.endswith("gate_up_proj"):
                parts = dict(zip(("w1", "w3"), np.split(value, 2, axis=1)))
            for part, stack in parts.items():
                found |= {f"{base}{e}.{part}.weight": stack[e] for e in range(len(stack))}
    return found
