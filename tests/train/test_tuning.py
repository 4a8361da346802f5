"""Promises of jaxlm/train/tuning.py: what is trained is what was asked for, and the model is the same one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loud_weights import loud_weights
from slow import all_but, slow

from jaxlm.models import sizes
from jaxlm.models.build import build, is_axes
from jaxlm.objectives import OBJECTIVES
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import param_shardings
from jaxlm.train.config import TuneConfig
from jaxlm.train.tuning import EVERYTHING, Tuning
from jaxlm.types import UserError

T = 12
FAMILIES = ("tiny-gpt", "tiny-llama", "tiny-qwen3", "tiny-gemma3", "tiny-mixtral")
ATTENTION = "q,k,v,o"


@functools.cache
def make(name="tiny-llama", lora_dropout=0.0, **changes):
    """(LM, params, loss)."""
    config = dataclasses.replace(sizes.size(name), **changes)
    lm = build(config, T, platform="cpu", lora_dropout=lora_dropout)
    return lm, loud_weights(config, lm, seed=2), OBJECTIVES["pretrain"].make_loss(lm, chunk_tokens=16)


def tuning(train, name="tiny-llama", **changes):
    if train == "lora" and "mixtral" in name:
        changes = {"lora_targets": ATTENTION} | changes
    num_blocks = (
        2 if "gemma3" in name else 1
    )  # a global layer and a local one, which are not the first of a period
    return Tuning(TuneConfig(train=train, **({"num_blocks": num_blocks} | changes)))


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 200, (3, T + 1)).astype(np.int32)
    return dict(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=rng.integers(0, 2, (3, T)).astype(np.float32),
        segments=np.ones((3, T), np.int32),
        positions=np.tile(np.arange(T, dtype=np.int32), (3, 1)),
    )


def parts(which, lm, params, noise=0.05):
    """(trained, frozen), with adapters that do something where noise > 0."""
    trained, frozen = which.split(which.init(jax.random.key(1), params))
    if which.config.train == "lora":
        rng = np.random.default_rng(1)
        trained = jax.tree.map(lambda w: w + noise * rng.standard_normal(w.shape).astype(np.float32), trained)
    return trained, frozen


def logits(lm, params):
    return lm.head(params, lm.hidden(params, batch()))


def assert_close(actual, expected, rtol):
    """Within rtol of the largest magnitude."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=rtol * max(float(np.abs(e).max()), 1e-30)),
        actual,
        expected,
    )


@pytest.mark.parametrize("train", [slow("all"), slow("last_blocks"), "lora"])
@pytest.mark.parametrize("name", all_but(("tiny-gemma3",), FAMILIES))
def test_the_parts_are_the_model(train, name):
    lm, params, _ = make(name)
    which = tuning(train, name)
    trained, frozen = parts(which, lm, params, noise=0)
    jax.tree.map(np.testing.assert_array_equal, which.whole(trained, frozen), params)
    same = jax.jit(functools.partial(logits, lm))
    if train == "last_blocks":  # two loops instead of one round otherwise
        assert_close(same(which.merge(trained, frozen)), same(params), 1e-5)
    else:
        np.testing.assert_array_equal(same(which.merge(trained, frozen)), same(params))
    shapes = jax.eval_shape(lambda: which.init(jax.random.key(1), params))
    for tree, axes, struct in zip((trained, frozen), which.axes(lm.axes), which.split(shapes), strict=True):
        leaves = jax.tree.leaves(axes, is_leaf=is_axes)
        assert [len(names) for names in leaves] == [w.ndim for w in jax.tree.leaves(tree)]
        assert jax.tree.structure(tree) == jax.tree.structure(axes, is_leaf=is_axes)
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(lambda s: s.shape, struct)


@pytest.mark.parametrize("train", ["head", "last_blocks", "lora"])
def test_the_head_of_a_classifier_is_always_trained(train):
    lm, params, _ = make()
    params = {**params, "classifier": jnp.ones((32, 3))}
    trained, frozen = tuning(train).split(params)
    assert "classifier" in trained
    assert "classifier" not in frozen
    assert "embedding" in frozen


def test_a_language_model_has_no_head_to_train_alone():
    with pytest.raises(UserError, match=r"'head': the model is no classifier. Try tune.train='last_blocks'"):
        tuning("head").split(make()[1])


def test_what_has_no_target_is_refused():
    with pytest.raises(UserError, match=r"lora_targets='up': the model has none of them. Try 'q,k,v,o'"):
        tuning("lora", lora_targets="up").init(jax.random.key(0), make("tiny-mixtral")[1])


def test_adapters_begin_as_those_of_peft():
    """torch's kaiming_uniform(a=sqrt(5)) over `inputs` is uniform within +-1 / sqrt(inputs)."""
    _, params, _ = make()
    trained = tuning("lora", lora_rank=64).init(jax.random.key(0), params)["layers"]["lora"]
    assert set(trained) == {"attention", "mlp"}
    for (group, name), inputs in {
        ("attention", "q"): 32,
        ("attention", "o"): 32,
        ("mlp", "down"): 96,
    }.items():
        a, b = trained[group][name]["a"], trained[group][name]["b"]
        inputs = int(np.prod(a.shape[1:-1]))
        assert np.abs(a).max() <= inputs**-0.5
        assert np.abs(a).max() > 0.98 * inputs**-0.5
        assert abs(float(a.var()) * 3 * inputs - 1) < 0.1
        assert not b.any()


@pytest.mark.parametrize(
    ("name", "remat", "scan"),
    [slow("tiny-llama", "none", True), ("tiny-llama", "full", False), slow("tiny-gemma3", "none", False),
     slow("tiny-gemma3", "save_dots", True), ("tiny-mixtral", "none", True),
     slow("tiny-mixtral", "save_dots", False)],
)  # fmt: skip
def test_gradients_of_the_last_blocks_are_those_of_the_whole_model(name, remat, scan):
    lm, params, loss = make(name, remat=remat, scan_layers=scan)
    which = tuning("last_blocks", name)
    trained, frozen = which.split(params)
    grads = jax.jit(jax.grad(lambda t: loss(which.merge(t, frozen), batch())[0]))(trained)
    expected = which.split(jax.jit(jax.grad(lambda p: loss(p, batch())[0]))(params))[0]
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    # As compilers round float32 in another order, one processor more than another.
    assert_close(grads, expected, 1e-5)


@pytest.mark.parametrize("name", all_but(("tiny-llama",), FAMILIES))
def test_gradients_of_adapters_are_those_through_the_merged_weights(name):
    lm, params, loss = make(name, scan_layers=name != "tiny-qwen3")
    which = tuning("lora", name, lora_rank=3, lora_alpha=5.0)
    trained, frozen = parts(which, lm, params, noise=0.2)
    value, grads = jax.jit(jax.value_and_grad(lambda t: loss(which.merge(t, frozen), batch())[0]))(trained)
    through = jax.jit(jax.value_and_grad(lambda t: loss(which.whole(t, frozen), batch())[0]))(trained)
    np.testing.assert_allclose(value, through[0], rtol=1e-5)
    assert_close(grads, through[1], 1e-5)
    assert not np.allclose(value, loss(params, batch())[0], rtol=1e-3)


@pytest.mark.parametrize(
    ("train", "name"),
    [("lora", "tiny-llama"), slow("lora", "tiny-gemma3"), slow("last_blocks", "tiny-gemma3")],
)
def test_decoding_with_parts_is_that_of_the_whole_weights(train, name):
    lm, params, _ = make(name)
    which = tuning(train, name)
    trained, frozen = parts(which, lm, params)
    tokens, positions = batch()["tokens"], batch()["positions"]

    def decode(params):
        x_BTD, cache = lm.extend(params, tokens[:, :8], positions[:, :8], lm.init_cache(3, T))
        return jnp.concatenate([x_BTD, lm.extend(params, tokens[:, 8:], positions[:, 8:], cache)[0]], axis=1)

    merged = which.merge(trained, frozen)
    assert_close(jax.jit(decode)(merged), jax.jit(decode)(which.whole(trained, frozen)), 1e-5)
    assert_close(jax.jit(decode)(merged), jax.jit(lm.hidden)(merged, batch()), 1e-5)


def test_dropout_of_adapters_is_keyed_and_leaves_the_rest_alone():
    lm, params, _ = make(lora_dropout=0.5)
    which = tuning("lora", lora_dropout=0.5)
    hidden = jax.jit(lambda trained, key: lm.hidden(which.merge(trained, frozen), batch(), key))
    trained, frozen = parts(which, lm, params)
    keys = jax.random.split(jax.random.key(3), 2)
    one, again, other = (np.asarray(hidden(trained, key)) for key in (keys[0], keys[0], keys[1]))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    quiet = parts(which, lm, params, noise=0)[0]
    np.testing.assert_array_equal(hidden(quiet, keys[0]), jax.jit(lm.hidden)(params, batch()))
    # Without a key, as in evaluation, nothing is dropped; on average over many keys neither.
    plain = np.asarray(lm.hidden(which.merge(trained, frozen), batch()))
    assert np.abs(plain - one).max() > 1e-3


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 8}])
def test_adapters_are_split_as_their_matrices_are(sizes):
    lm, _, _ = make("tiny-llama", num_heads=4, num_kv_heads=2)
    mesh = make_mesh({"data": 1, "fsdp": 1, "expert": 1, "tensor": 1} | sizes, jax.devices())
    trained = param_shardings(tuning("lora").axes(lm.axes)[0], mesh)["layers"]["lora"]
    whole = param_shardings(EVERYTHING.axes(lm.axes)[0], mesh)["layers"]
    for group, name, num_in in (("attention", "q", 1), ("attention", "o", 2), ("mlp", "down", 1)):
        spec = tuple(whole[group][name].spec)
        adapters = trained[group][name]
        assert tuple(adapters["a"].spec) == (*spec[: 1 + num_in], None)
        assert tuple(adapters["b"].spec) == (None, None, *spec[1 + num_in :])


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.5 / 127), ("nf4", 0.16)])
def test_a_quantised_base_is_near_the_weights_in_less_memory(kind, bound):
    lm, params, _ = make("tiny-llama", embed_dim=128, num_heads=2, num_kv_heads=1, head_dim=64)
    which = tuning("lora", quantize=kind)
    trained, frozen = parts(which, lm, params, noise=0)
    whole = which.whole(trained, frozen)
    for group in ("attention", "mlp"):
        for name, w in params["layers"][group].items():
            error = np.abs(np.asarray(whole["layers"][group][name]) - w)
            # Of the largest weight of its channel or block; here of the matrix, which is at least that.
            assert 0 < error.max() <= bound * float(np.abs(w).max()), (group, name)
    np.testing.assert_array_equal(whole["embedding"], params["embedding"])
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen["layers"]["quantized"]))
    before = sum(
        leaf.nbytes for group in ("attention", "mlp") for leaf in jax.tree.leaves(params["layers"][group])
    )
    assert num_bytes < {"int8": 0.27, "nf4": 0.15}[kind] * before


@pytest.mark.parametrize(
    ("name", "kind", "scan"),
    [slow("tiny-gemma3", "int8", True), slow("tiny-gemma3", "nf4", False), ("tiny-llama", "nf4", True)],
)
def test_adapters_on_a_quantised_base_learn_what_they_would_on_its_values(name, kind, scan):
    lm, params, loss = make(name, scan_layers=scan)
    which, plain = tuning("lora", quantize=kind), tuning("lora")
    trained, frozen = parts(which, lm, params)
    full = {k: v for k, v in which.whole(jax.tree.map(jnp.zeros_like, trained), frozen).items()}

    def grad(which, frozen):
        return jax.jit(jax.value_and_grad(lambda t: loss(which.merge(t, frozen), batch())[0]))(trained)

    found, expected = grad(which, frozen), grad(plain, plain.split(full)[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert_close(found[1], expected[1], 1e-5)
