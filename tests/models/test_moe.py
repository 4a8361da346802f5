"""The mixture of experts against a plain loop over tokens, and what its router reports against sums by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow

from jaxlm.models import grouped, sizes
from jaxlm.models.build import build, no_constraint
from jaxlm.models.config import ModelConfig
from jaxlm.models.moe import MoE, Routes, route, router_sums
from jaxlm.objectives import OBJECTIVES
from jaxlm.types import UserError

B, T, D, F, E = 2, 13, 16, 24, 6


def make_config(**fields):
    shape = dict(vocab_size=32, embed_dim=D, num_layers=3, num_heads=2, mlp_dim=F, num_experts=E)
    return ModelConfig(**(shape | fields))


def make_weights(config, seed=0):
    rng = np.random.default_rng(seed)
    num = config.num_experts
    shapes = {"router": (D, num), "up": (num, D, F), "gate": (num, D, F), "down": (num, F, D)}
    if not config.gated:
        del shapes["gate"]
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def make_x(seed=1, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, T, D)), dtype)


@functools.partial(jax.jit, static_argnums=(0, 4))
def moe(config, weights, x_BTD, segments_BT=None, layer=0):
    return MoE(config, no_constraint, None).apply({"params": weights}, x_BTD, segments_BT, layer)


ACTIVATIONS = {
    "swiglu": jax.nn.silu,
    "geglu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


def by_loops(config, weights, x_BTD):
    """Token by token, expert by expert, as MixtralSparseMoeBlock and Qwen3MoeSparseMoeBlock define it."""
    out = np.zeros(x_BTD.shape)
    act = ACTIVATIONS[config.activation]
    for b, t in np.ndindex(*x_BTD.shape[:2]):
        x = np.asarray(x_BTD[b, t], np.float64)
        logits = x @ weights["router"]
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        chosen = np.argsort(-probs)[: config.num_experts_per_token]
        shares = probs[chosen] / (probs[chosen].sum() if config.normalize_expert_weights else 1.0)
        for e, share in zip(chosen, shares):
            h = x @ weights["up"][e]
            h = np.asarray(act(x @ weights["gate"][e])) * h if config.gated else np.asarray(act(h))
            out[b, t] += share * (h @ weights["down"][e])
    return out


def all_experts_for_all_tokens(config, weights, x_BTD):
    """The same, differentiable: every expert sees every token, and those not chosen get the share 0."""
    probs_BTE = jax.nn.softmax(x_BTD @ weights["router"][None], axis=-1)
    kept_BTE = probs_BTE >= jax.lax.top_k(probs_BTE, config.num_experts_per_token)[0][..., -1:]
    shares_BTE = jnp.where(kept_BTE, probs_BTE, 0.0)
    if config.normalize_expert_weights:
        shares_BTE /= shares_BTE.sum(-1, keepdims=True)
    h_BTEF = jnp.einsum("BTD,EDF->BTEF", x_BTD, weights["up"])
    act = ACTIVATIONS[config.activation]
    h_BTEF = (
        act(jnp.einsum("BTD,EDF->BTEF", x_BTD, weights["gate"])) * h_BTEF if config.gated else act(h_BTEF)
    )
    return jnp.einsum("BTEF,EFD,BTE->BTD", h_BTEF, weights["down"], shares_BTE)


CASES = [
    dict(num_experts_per_token=2),
    dict(num_experts_per_token=3, normalize_expert_weights=False, activation="geglu"),
    dict(num_experts_per_token=1, normalize_expert_weights=False, activation="gelu"),
    dict(num_experts_per_token=E, activation="relu"),
]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_it_is_the_plain_loop(fields):
    config = make_config(**fields)
    weights, x = make_weights(config), make_x()
    expected = by_loops(config, weights, x)
    np.testing.assert_allclose(
        moe(config, weights, x)[0], expected, rtol=0, atol=2e-6 * np.abs(expected).max()
    )


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_gradients_are_those_of_the_plain_form(fields):
    config = make_config(**fields)
    weights, x = make_weights(config), make_x()
    mix = jnp.asarray(np.random.default_rng(2).normal(size=x.shape), jnp.float32)
    ours = jax.jit(jax.grad(lambda w, x: (moe(config, w, x)[0] * mix).sum(), argnums=(0, 1)))(weights, x)
    plain = jax.jit(
        jax.grad(lambda w, x: (all_experts_for_all_tokens(config, w, x) * mix).sum(), argnums=(0, 1))
    )
    for (path, expected), found in zip(
        jax.tree_util.tree_leaves_with_path(plain(weights, x)), jax.tree.leaves(ours), strict=True
    ):
        atol = 1e-5 * float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=str(path))


def test_no_token_is_dropped_where_all_want_the_same_expert():
    """And an expert that nobody wants gets no gradient, rather than none at all."""
    config = make_config(num_experts_per_token=1, normalize_expert_weights=False)
    weights, x = make_weights(config), jnp.abs(make_x())
    weights["router"] = np.zeros((D, E), np.float32)
    weights["router"][:, 4] = 1.0
    expected = by_loops(config, weights, x)
    assert np.abs(expected).min(axis=-1).all()
    np.testing.assert_allclose(
        moe(config, weights, x)[0], expected, rtol=0, atol=2e-6 * np.abs(expected).max()
    )
    grads = jax.grad(lambda w: jnp.square(moe(config, w, x)[0]).sum())(weights)
    for name in ("up", "gate", "down"):
        largest_E = np.abs(grads[name]).max(axis=(1, 2))
        assert (largest_E > 0).tolist() == [e == 4 for e in range(E)]


def test_bfloat16_accumulates_in_float32_and_never_rounds_the_gradient_of_a_weight():
    config = make_config(dtype="bfloat16")
    weights, x = make_weights(config), make_x(dtype=jnp.bfloat16)
    weights["router"] = 8 * weights["router"]  # clear choices, also after rounding
    exact = by_loops(config, weights, np.asarray(x, np.float32))
    y, _ = moe(config, weights, x)
    assert y.dtype == jnp.bfloat16
    error = np.abs(np.asarray(y, np.float32) - exact).mean() / exact.std()
    assert 0 < error < 0.01
    grads = jax.grad(lambda w: moe(config, w, x)[0].astype(jnp.float32).sum())(weights)
    for name, grad in grads.items():
        assert grad.dtype == jnp.float32
        assert (grad != grad.astype(jnp.bfloat16).astype(jnp.float32)).any(), name


@pytest.mark.parametrize(
    ("sizes_E", "num_rows"),
    [([3, 0, 40, 1, 0, 20], 64), ([0, 0, 0, 0, 0, 64], 64), ([64, 0, 0], 64), ([1, 0, 0, 1, 0], 2), ([0, 2, 0], 5),
     ([16, 16, 32], 64), ([17, 15, 33, 535], 600)],
)  # fmt: skip
def test_blocks_of_rows_equal_ragged_dot(sizes_E, num_rows):
    """What CPUs run against what TPUs run; rows beyond the last group may hold anything, and count for nothing."""
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(num_rows, width)).astype(np.float32) for width in (D, F))
    w, sizes_E = rng.normal(size=(len(sizes_E), D, F)).astype(np.float32), jnp.asarray(sizes_E, jnp.int32)
    num = int(sizes_E.sum())
    x[num:], g[num:] = np.nan, np.nan
    for name, args, rows in (
        ("_rows", (x, w), num),
        ("_rows_back", (g, w), num),
        ("_weight_grad", (x, g), None),
    ):
        expected = getattr(grouped, name)(*args, sizes_E)[:rows]
        found = jax.jit(getattr(grouped, f"{name}_cpu"))(*args, sizes_E)[:rows]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def test_blocks_cover_each_group_once_and_decoding_takes_single_rows():
    blocks = grouped.cut(jnp.asarray([3, 0, 9, 4]), 16, 4)
    count = int(blocks.num)
    assert [tuple(int(a[i]) for a in blocks[1:]) for i in range(count)] == [
        (0, 0, 3), (2, 3, 12), (2, 7, 12), (2, 11, 12), (3, 12, 16)
    ]  # fmt: skip
    assert grouped.block_rows(num_rows=4, num_groups=8) == 1
    assert grouped.block_rows(num_rows=100_000, num_groups=8) == grouped.LARGEST_BLOCK


# What the router reports.


def routes_of(probs_BTE, k):
    probs_BTE = jnp.asarray(probs_BTE, jnp.float32)
    shares, experts = jax.lax.top_k(probs_BTE, k)
    return Routes(jnp.log(probs_BTE) + 2.0, probs_BTE, experts, shares)


def test_router_sums_by_hand():
    """Two rows of four tokens and two experts, of which a token meets one; the last token of row 1 is padding."""
    config = make_config(num_experts=2, num_experts_per_token=1, balance_loss=0.5, router_z_loss=0.25)
    first = [0.9, 0.8, 0.6, 0.3]  # probabilities of expert 0; 3 of 4 tokens go there
    second = [0.2, 0.4, 0.3, 0.9]  # without the last: 0 of 3
    probs = np.array([[[p, 1 - p] for p in row] for row in (first, second)])
    sums = router_sums(config, routes_of(probs, 1), jnp.array([[1, 1, 2, 2], [1, 1, 1, 0]]), 1)
    # E sum_e f_e P_e n, n = 4 and 3
    balance = 2 * (3 / 4 * 2.6 / 4 + 1 / 4 * 1.4 / 4) * 4 + 2 * (0 + 3 / 3 * 2.1 / 3) * 3
    z = 7 * 2.0**2  # the logsumexp of log p + 2 is 2
    np.testing.assert_allclose([sums.balance, sums.z, sums.num_routed], [balance, z, 7], rtol=1e-6)
    assert float(sums.loss) == pytest.approx(0.5 * balance + 0.25 * z, rel=1e-6)
    np.testing.assert_array_equal(sums.load_LE, [[0, 0], [3, 4], [0, 0]])


def test_balance_is_one_a_token_where_loads_are_even_and_e_over_k_where_one_expert_gets_all():
    config = make_config(num_experts=4, num_experts_per_token=2)
    even = (
        np.full((1, 8, 4), 0.1) + 0.3 * np.eye(4)[np.arange(8) % 4] + 0.3 * np.eye(4)[(np.arange(8) + 1) % 4]
    )
    assert float(router_sums(config, routes_of(even, 2), None, 0).balance) == pytest.approx(8, rel=1e-6)
    one_sided = np.tile([0.5, 0.5 - 2e-6, 1e-6, 1e-6], (1, 8, 1))
    assert float(router_sums(config, routes_of(one_sided, 2), None, 0).balance) == pytest.approx(
        8 * 4 / 2, rel=1e-4
    )


def test_router_sums_add_up_over_rows():
    config = make_config(balance_loss=1.0)
    weights, x = make_weights(config), make_x()
    segments = jnp.asarray(np.arange(T)[None] < [[T], [5]], jnp.int32)
    whole = moe(config, weights, x, segments)[1]
    parts = [moe(config, weights, x[b : b + 1], segments[b : b + 1])[1] for b in range(B)]
    for found, *each in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(found, sum(each), rtol=1e-6)
    assert float(whole.num_routed) == T + 5


def test_an_empty_row_is_no_nan():
    config = make_config(balance_loss=1.0, router_z_loss=1.0)
    grads = jax.grad(lambda x: moe(config, make_weights(config), x, jnp.zeros((B, T), jnp.int32))[1].loss)(
        make_x()
    )
    np.testing.assert_array_equal(grads, 0.0)


def test_the_balance_loss_pulls_tokens_from_the_busy_expert():
    config = make_config(num_experts_per_token=1, balance_loss=1.0)
    weights, x = make_weights(config), jnp.abs(make_x())
    weights["router"][:, 2] += 0.3
    busy = int(np.argmax(moe(config, weights, x)[1].load_LE[0]))
    grads = jax.grad(lambda r: moe(config, {**weights, "router": r}, x)[1].loss)(
        jnp.asarray(weights["router"])
    )
    before = route(config, x, weights["router"]).probs_BTE[..., busy].mean()
    after = route(config, x, weights["router"] - 0.1 * grads).probs_BTE[..., busy].mean()
    assert after < before


# In the model.


@functools.cache
def tiny(name="tiny-mixtral", **fields):
    config = dataclasses.replace(sizes.size(name), **fields)
    lm = build(config, 16, platform="cpu")
    return config, lm, jax.jit(lm.init)(jax.random.key(0))


def batch_of(config):
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, config.vocab_size, (B, 17)).astype(np.int32)
    segments = (np.arange(16)[None] < [[16], [11]]).astype(np.int32)
    weights = segments * (rng.random((B, 16)) < 0.7)
    return dict(
        tokens=tokens[:, :-1], targets=tokens[:, 1:], segments=segments, weights=weights.astype(np.float32)
    )


@pytest.mark.parametrize("scan_layers", [True, slow(False)])
def test_every_layer_reports_once(scan_layers):
    config, lm, params = tiny(scan_layers=scan_layers, remat="full")
    _, router = jax.jit(lm.hidden_with_router)(params, batch_of(config))
    assert float(router.num_routed) == config.num_layers * (16 + 11)
    np.testing.assert_array_equal(
        np.asarray(router.load_LE).sum(axis=1), config.num_experts_per_token * (16 + 11)
    )
    assert float(router.balance) >= 0.9 * config.num_layers * (16 + 11)


def test_losses_of_the_router_are_trained_on_but_not_reported_as_loss():
    """Sums: coefficient x sum over tokens and layers, to be divided by the weight of the targets with the rest."""
    config, lm, params = tiny(balance_loss=0.3, router_z_loss=0.02)
    batch = batch_of(config)
    total, sums = jax.jit(OBJECTIVES["pretrain"].make_loss(lm))(params, batch)
    plain_total, plain = jax.jit(OBJECTIVES["pretrain"].make_loss(tiny()[1]))(params, batch)
    assert float(sums.loss) == float(plain.loss) == pytest.approx(float(plain_total), rel=1e-6)
    router = sums.router
    assert float(total - sums.loss) == pytest.approx(float(0.3 * router.balance + 0.02 * router.z), rel=1e-5)


def test_a_model_without_experts_has_no_router():
    lm = build(sizes.size("tiny-llama"), 16, platform="cpu")
    assert lm.hidden_with_router is None


@functools.cache
def gradient(**fields):
    config, lm, params = tiny(balance_loss=0.3, router_z_loss=0.02, **fields)
    loss = OBJECTIVES["pretrain"].make_loss(lm)
    return jax.jit(jax.grad(lambda p: loss(p, batch_of(config))[0]))(params)


@pytest.mark.parametrize(
    ("remat", "scan_layers"), [slow("save_dots", True), slow("save_attention", False), ("full", True)]
)
def test_remat_changes_no_gradient(remat, scan_layers):
    pairs = zip(
        jax.tree.leaves(gradient()),
        jax.tree.leaves(gradient(remat=remat, scan_layers=scan_layers)),
        strict=True,
    )
    for expected, found in pairs:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_experts=0), "model.num_experts=0 must be positive"),
        (dict(num_experts=4, num_experts_per_token=5), "Try num_experts_per_token=4."),
        (dict(num_experts=4, num_experts_per_token=0), "Try num_experts_per_token=1."),
        (dict(num_experts=4, bias="all"), "experts have no biases"),
        (dict(num_experts=4, balance_loss=-0.1), "model.balance_loss=-0.1 must not be negative"),
        (dict(balance_loss=0.1), "model.balance_loss=0.1 would be ignored: model.num_experts is unset"),
        (dict(normalize_expert_weights=False), "model.normalize_expert_weights=False would be ignored"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(UserError) as caught:
        ModelConfig(**fields)
    assert message in str(caught.value)
