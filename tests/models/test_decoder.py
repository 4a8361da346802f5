"""What the decoder promises, for every family and every way to compute attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loud_weights import loud_weights
from slow import all_but, slow

from jaxlm.models import sizes
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.models.decoder import run_blocks
from jaxlm.types import UserError

TINY = sizes.TINY_SIZES
VARIED = ("tiny-gpt", "tiny-llama", "tiny-mixtral", "tiny-gemma2", "tiny-gemma3")
"""Every norm, kind of position, mask, cap and kind of MLP; the others mix them anew."""
DIFFERENT = ("tiny-gpt", "tiny-mixtral", "tiny-gemma3")
"""Of those, the ones that share least; where gradients, or every token alone, are compared."""
KERNELS = ("dense", "chunked")
VARIED_KERNELS = [
    (name, kernel) if kernel == "dense" or name in VARIED else slow(name, kernel)
    for name in TINY
    for kernel in KERNELS
]
B, T = 2, 160
"""More positions than one chunk of queries (128)."""


@functools.cache
def make(name, seq_len=T, **overrides):
    """(config, LM, params) of a tiny size, with changed fields. Weights are the same for the same shapes."""
    config = dataclasses.replace(sizes.size(name), **{"attention": "dense", **overrides})
    if config.positions == "learned":
        config = dataclasses.replace(config, max_seq_len=seq_len)
    lm = build(config, seq_len, platform="cpu")
    return config, lm, loud_weights(config, lm, seed=1)


@functools.cache
def compiled(name, seq_len=T, **overrides):
    """(logits(params, batch) under jit, params)."""
    _, lm, params = make(name, seq_len, **overrides)
    return jax.jit(lambda params, batch: lm.head(params, lm.hidden(params, batch))), params


def packed_batch(lengths=((53, 53, 40), (160,)), seq_len=T, seed=0):
    """Rows of random documents, positions restarting in each; what is left over is padding (segment 0)."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((len(lengths), seq_len), np.int32)
    positions = np.zeros((len(lengths), seq_len), np.int32)
    for row, documents in enumerate(lengths):
        start = 0
        for segment, length in enumerate(documents, start=1):
            segments[row, start : start + length] = segment
            positions[row, start : start + length] = np.arange(length)
            start += length
    tokens = rng.integers(0, 256, segments.shape).astype(np.int32)
    return dict(tokens=tokens, segments=segments, positions=positions)


def other_tokens(batch, where):
    """The batch with every token of `where` changed."""
    return {
        **batch,
        "tokens": np.where(where, (batch["tokens"] + 101) % 256, batch["tokens"]).astype(np.int32),
    }


def assert_close(actual, expected, rtol):
    """Within rtol of the largest magnitude: what float32 rounding scales with."""
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * max(np.abs(expected).max(), 1e-30))


# Who sees whom.


@pytest.mark.parametrize(("name", "kernel"), VARIED_KERNELS)
def test_the_future_does_not_change_past_logits(name, kernel):
    logits, params = compiled(name, attention=kernel)
    batch = packed_batch()
    before = logits(params, batch)
    for t in (1, 69, 130):
        after = logits(params, other_tokens(batch, np.arange(T)[None, :] >= t))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert not np.array_equal(after[:, t:], before[:, t:])


@pytest.mark.parametrize(("name", "kernel"), VARIED_KERNELS)
def test_documents_in_a_row_and_rows_in_a_batch_never_see_each_other(name, kernel):  # pain 12
    """Changing a document, or a whole other row, leaves the logits of the rest equal to the bit."""
    logits, params = compiled(name, attention=kernel)
    batch = packed_batch()
    before = logits(params, batch)
    for segment in (1, 2, 3):
        changed = (batch["segments"] == segment) & (np.arange(B)[:, None] == 0)
        after = logits(params, other_tokens(batch, changed))
        np.testing.assert_array_equal(after[~changed], before[~changed])
        assert not np.array_equal(after[changed], before[changed])


@pytest.mark.parametrize(("name", "kernel"), VARIED_KERNELS)
def test_padding_is_inert(name, kernel):
    logits, params = compiled(name, attention=kernel)
    batch = packed_batch()
    real = batch["segments"] > 0
    assert not real.all()
    after = logits(params, other_tokens(batch, ~real))
    np.testing.assert_array_equal(after[real], logits(params, batch)[real])


@pytest.mark.parametrize("name", TINY)
def test_a_packed_document_equals_the_same_document_alone(name):  # pain 12
    """Alone: in a row of its own length, without segments and positions."""
    packed, params = compiled(name, attention="chunked")
    alone, _ = compiled(name, attention="dense")
    batch = packed_batch()
    together = packed(params, batch)
    for start, length in ((0, 53), (53, 53)):
        document = batch["tokens"][:1, start : start + length]
        assert_close(together[:1, start : start + length], alone(params, {"tokens": document}), 2e-5)


# One function, however it is run.


@functools.cache
def loss_and_grads(name, **overrides):
    """A loss that depends on every logit, and its gradient."""
    seq_len = 32
    config, lm, params = make(name, seq_len, **overrides)
    batch = packed_batch(((20, 9), (32,)), seq_len)
    mix = jax.random.normal(jax.random.key(3), (B, seq_len, config.vocab_size))

    def loss(params):
        logits = lm.head(params, lm.hidden(params, batch))
        return (jax.nn.log_softmax(logits) * mix).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_same_training(name, **overrides):
    value, grads = loss_and_grads(name)
    other_value, other_grads = loss_and_grads(name, **overrides)
    assert_close(other_value, value, 1e-5)
    largest = max(float(np.abs(grad).max()) for grad in jax.tree.leaves(grads))
    for (path, grad), other in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(other_grads)):
        # Relative to the weight's own largest gradient; gradients that are 0 but for rounding, to all.
        atol = 1e-4 * max(float(np.abs(grad).max()), 1e-3 * largest)
        np.testing.assert_allclose(other, grad, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", all_but(DIFFERENT, TINY))
def test_every_weight_has_a_gradient(name):
    for path, grad in jax.tree_util.tree_leaves_with_path(loss_and_grads(name)[1]):
        assert np.abs(grad).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", all_but(DIFFERENT, TINY))
def test_scan_equals_unrolled(name):
    assert_same_training(name, scan_layers=False)


@pytest.mark.parametrize(
    ("name", "remat", "scan_layers"),
    [
        slow("tiny-llama", "save_dots", True),
        ("tiny-llama", "save_attention", True),
        slow("tiny-llama", "full", True),
        ("tiny-llama", "full", False),
        slow("tiny-gemma3", "full", True),
    ],
)
def test_remat_changes_neither_values_nor_gradients(name, remat, scan_layers):
    assert_same_training(name, remat=remat, scan_layers=scan_layers)


@pytest.mark.parametrize("name", TINY)
def test_attention_kernels_agree(name):
    assert_close(logits_of(name, attention="chunked"), logits_of(name), 2e-5)


@pytest.mark.parametrize("name", all_but(DIFFERENT, TINY))
def test_prefill_then_decode_equals_one_full_pass(name):
    """Prompts of different lengths, padded on the right; the rest one token at a time."""
    seq_len, prompts = 24, np.array([9, 4])
    config, lm, params = make(name, seq_len)
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 256, (B, seq_len)).astype(np.int32)
    full = jax.jit(lambda params, batch: lm.head(params, lm.hidden(params, batch)))(
        params, {"tokens": tokens}
    )

    @jax.jit
    def step(params, *args):
        x, cache = lm.extend(params, *args)
        return lm.head(params, x), cache

    longest = prompts.max()
    prompt = np.where(np.arange(longest) < prompts[:, None], tokens[:, :longest], 0).astype(np.int32)
    places = np.broadcast_to(np.arange(longest, dtype=np.int32), prompt.shape)
    logits, cache = step(params, prompt, places, lm.init_cache(B, seq_len))
    rows = np.arange(B)
    assert_close(logits[rows, prompts - 1], full[rows, prompts - 1], 2e-5)
    for done in range(seq_len - longest):
        at = prompts + done
        logits, cache = step(params, tokens[rows, at][:, None], at[:, None].astype(np.int32), cache)
        assert_close(logits[:, 0], full[rows, at], 2e-5)


@pytest.mark.parametrize("name", ["tiny-gpt", "tiny-llama", "tiny-gemma3"])
def test_bfloat16_is_close_to_float32(name):
    batch = packed_batch()
    (exact, params), (rounded, _) = compiled(name), compiled(name, dtype="bfloat16")
    expected, actual = exact(params, batch), rounded(params, batch)
    assert actual.dtype == jnp.float32  # logits always are
    error = np.abs(np.asarray(actual - expected)).mean() / np.asarray(expected).std()
    assert 0 < error < 0.05


def test_dropout_is_keyed():
    _, lm, params = make("tiny-llama", 32, dropout=0.3)
    _, without, _ = make("tiny-llama", 32)
    batch = packed_batch(((32,), (32,)), 32)
    hidden = jax.jit(lm.hidden)
    one, two = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(hidden(params, batch, one), hidden(params, batch, one))
    assert not np.allclose(hidden(params, batch, one), hidden(params, batch, two))
    assert not np.allclose(hidden(params, batch, one), hidden(params, batch))
    np.testing.assert_array_equal(hidden(params, batch), jax.jit(without.hidden)(params, batch))


def test_dropout_differs_between_layers():
    """With one mask for all layers, two layers of equal weights would drop the same channels."""
    config, _, _ = make("tiny-llama")
    seen = []

    def apply_block(kind, params, x, key, cache, layer):
        seen.append(jax.random.key_data(key))
        return x, cache

    stack = {"w": jnp.zeros((config.num_layers, 1))}
    unrolled = dataclasses.replace(config, scan_layers=False)
    run_blocks(unrolled, apply_block, stack, jnp.zeros((1,)), jax.random.key(0))
    assert len({tuple(np.asarray(key).tolist()) for key in seen}) == config.num_layers


# One switch at a time.


def logits_of(name, params=None, batch=None, seq_len=T, **overrides):
    logits, own = compiled(name, seq_len, **overrides)
    return logits(own if params is None else params, batch or packed_batch(seq_len=seq_len))


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-qwen3", "tiny-gemma2"])
def test_grouped_query_attention_is_multi_head_attention_with_repeated_heads(name):
    config, _, params = make(name)
    group = config.num_heads // config.kv_heads
    assert group > 1
    attention = dict(params["layers"]["attention"])
    for key in ("k", "v", "k_bias", "v_bias"):
        if key in attention:
            attention[key] = np.repeat(attention[key], group, axis=-2)  # [L, (D,) K, H]
    repeated = {**params, "layers": {**params["layers"], "attention": attention}}
    expected = logits_of(name, repeated, num_kv_heads=config.num_heads)
    assert_close(logits_of(name), expected, 2e-5)


def test_a_window_as_long_as_the_row_is_no_window():
    wide = logits_of("tiny-gemma2", sliding_window=T)
    whole = logits_of("tiny-gemma2", sliding_window=None, layer_pattern="g")
    assert_close(wide, whole, 2e-5)
    assert not np.allclose(logits_of("tiny-gemma2"), whole, atol=0.01)


def test_final_softcap_squashes_the_logits():
    raw = np.asarray(logits_of("tiny-gemma2", logits_softcap=None))
    capped = np.asarray(logits_of("tiny-gemma2", logits_softcap=0.5))
    assert np.abs(raw).max() > 0.6
    assert np.abs(capped).max() <= 0.5
    assert_close(capped, 0.5 * np.tanh(raw / 0.5), 1e-4)


def test_query_scale_is_a_factor_on_the_queries():
    config, _, params = make("tiny-llama")
    attention = params["layers"]["attention"]
    smaller = {**attention, "q": attention["q"] * (config.head_width / 24) ** 0.5}
    params = {**params, "layers": {**params["layers"], "attention": smaller}}
    assert_close(logits_of("tiny-llama", query_scale_dim=24), logits_of("tiny-llama", params), 2e-5)


def test_scaled_embeddings_are_scaled_by_the_root_of_the_width():
    config, lm, params = make("tiny-gemma2")
    _, plain, _ = make("tiny-gemma2", scale_embeddings=False)
    larger = {**params, "embedding": params["embedding"] * config.embed_dim**0.5}
    batch = packed_batch()
    assert_close(jax.jit(lm.hidden)(params, batch), jax.jit(plain.hidden)(larger, batch), 2e-5)


@pytest.mark.parametrize("name", all_but(VARIED, TINY))
def test_only_learned_positions_know_where_a_document_begins(name):
    """RoPE sees distances only: moving a document by 17 positions changes nothing."""
    seq_len, batch = 64, packed_batch(((40,), (30,)), 64)
    moved = {**batch, "positions": batch["positions"] + 17}
    real = batch["segments"] > 0
    before, after = (logits_of(name, batch=b, seq_len=seq_len)[real] for b in (batch, moved))
    if sizes.size(name).positions == "rope":
        assert_close(after, before, 1e-4)
    else:
        assert not np.allclose(after, before, atol=0.1)


def test_learned_positions_are_rows_of_a_table():
    seq_len, batch = 64, packed_batch(((40, 24), (64,)), 64)
    params = make("tiny-gpt", seq_len)[2]
    order = np.random.default_rng(0).permutation(seq_len)
    shuffled = {**params, "positions": params["positions"][np.argsort(order)]}
    moved = {**batch, "positions": order[batch["positions"]].astype(np.int32)}
    expected = logits_of("tiny-gpt", params, batch, seq_len)
    np.testing.assert_array_equal(logits_of("tiny-gpt", shuffled, moved, seq_len), expected)


def test_post_norm_has_the_last_word_on_what_a_block_adds():
    """With the post-norms' scales at 0 (stored as -1) every block adds nothing."""
    _, lm, params = make("tiny-gemma3")
    layers = dict(params["layers"])
    for name in ("attention_post_norm", "mlp_post_norm"):
        layers[name] = {"scale": -jnp.ones_like(layers[name]["scale"])}
    batch = packed_batch()
    changed = {**layers, "mlp": jax.tree.map(lambda w: w + 1.0, layers["mlp"])}
    hidden = jax.jit(lm.hidden)
    silent, still = (hidden({**params, "layers": stack}, batch) for stack in (layers, changed))
    np.testing.assert_array_equal(silent, still)


def test_no_vocabulary_no_model():
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        build(ModelConfig(), 32)


@pytest.mark.parametrize(("pattern", "num_layers", "expected"), [("lg", 4, 1), ("lllg", 8, 3), ("g", 4, 0)])
def test_layers_of_a_pattern_wait_for_each_other(pattern, num_layers, expected):
    # Else the compiler of TPUs collects the weights of all of them at once: Gemma 3 27B took 60 GiB in place of 39.
    window = 8 if "l" in pattern else None
    how = dict(layer_pattern=pattern, num_layers=num_layers, sliding_window=window, scan_layers=True)
    _, lm, params = make("tiny-gemma2", **how)
    program = str(jax.make_jaxpr(lm.hidden)(params, packed_batch()))
    assert program.count("optimization_barrier") == expected
