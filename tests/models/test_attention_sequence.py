"""Attention of rows that are cut over devices is `attend_dense` of whole rows: values and all gradients."""

import collections
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from slow import slow

from jaxlm.models.attention import attend_dense, pick_attention
from jaxlm.models.attention_flash import Blocks
from jaxlm.models.attention_sequence import attend_sequence
from jaxlm.models.attention_table import Seen, TableKernel
from jaxlm.models.config import ModelConfig
from jaxlm.models.pieces import Pieces, arrange
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import make_spread
from jaxlm.types import UserError

SMALL = Blocks(q=256, kv=128, diagonal=128, q_back=128, kv_back=128, diagonal_back=128)
CHUNKS_OF_KEYS = SMALL._replace(q=128, vmem_bytes=1)


def spread_of(num, method="gather"):
    return make_spread(make_mesh({"sequence": num}, jax.devices()[:num]), sequence_attention=method)


def arrays(T, N, K, H, B=1):
    rng = np.random.default_rng(0)
    q, mix = rng.normal(size=(2, B, T, N, H))
    k, v = rng.normal(size=(2, B, T, K, H))
    return tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v, mix))


def documents(T, B=1):
    """Runs of random lengths, the last of them padding."""
    rng = np.random.default_rng(1)
    ids = np.cumsum(rng.random((B, T)) < 6 / T, axis=1) + 1
    return jnp.asarray(np.where(np.arange(T)[None] < T - 7, ids, 0), jnp.int32)


def value_and_grads(attend):
    def run(q, k, v, mix):
        o, pull = jax.vjp(attend, q, k, v)
        return (o, *pull(mix))

    return run


def cut(kernel, spread, T, segments_BT, **how):
    """attend(q, k, v) of whole rows by way of rows that are cut."""
    rows = {"tokens": jnp.zeros((1, T), jnp.int32)}
    rows |= {} if segments_BT is None else {"segments": segments_BT}
    batch = jax.jit(functools.partial(arrange, spread=spread))(rows)
    order_T = np.asarray(batch["positions"])[0]

    def attend(q, k, v):
        there = (x[:, order_T] for x in (q, k, v))
        o = attend_sequence(kernel, spread, *there, begins_BT=batch.get("begins"), **how)
        return o[:, np.argsort(order_T)]

    return attend


@pytest.mark.parametrize(
    ("method", "kernel", "num", "T", "N", "K", "H", "window", "softcap", "packed", "blocks"),
    [
        (method, *case)
        if case[0] == "chunked" or ((*case[:2], method) == ("flash", 4, "ring"))
        else slow(method, *case)
        for case in [
            ("dense", 8, 48, 2, 1, 8, None, None, True, None),
            ("chunked", 4, 64, 4, 2, 8, 20, 2.0, True, None),
            ("flash", 2, 512, 1, 1, 128, None, None, False, SMALL),
            ("flash", 4, 1024, 2, 1, 128, 300, 2.0, True, SMALL),
            ("flash", 2, 512, 4, 2, 64, None, None, True, CHUNKS_OF_KEYS),
        ]
        for method in ("gather", "ring")
    ],
)
def test_values_and_gradients_are_those_of_whole_rows(
    method, kernel, num, T, N, K, H, window, softcap, packed, blocks
):
    inputs, segments_BT = arrays(T, N, K, H), documents(T) if packed else None
    how = {"window": window, "softcap": softcap, "scale": 0.11}
    dense = functools.partial(attend_dense, segments_BT=segments_BT, **how)
    expected = jax.jit(value_and_grads(dense))(*inputs)
    if kernel == "flash":
        how |= {"blocks": blocks, "interpret": True}
    attend = cut(kernel, spread_of(num, method), T, segments_BT, **how)
    actual = jax.jit(value_and_grads(attend))(*inputs)
    for name, want, got in zip(("o", "dq", "dk", "dv"), expected, actual, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * jnp.abs(want).max(), err_msg=name)


def primitives(jaxpr):
    """How often a program names each primitive whose results it uses, inside of others too."""
    found, used = collections.Counter(), {id(var) for var in jaxpr.outvars}
    for eqn in reversed(jaxpr.eqns):
        if any(id(var) in used for var in eqn.outvars):
            used |= {id(var) for var in eqn.invars}
            found[eqn.primitive.name] += 1
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                found += primitives(inner)
    return found


@pytest.mark.parametrize(
    ("method", "used", "unused"),
    [
        ("gather", {"all_gather", "reduce_scatter"}, {"ppermute"}),
        ("ring", {"ppermute"}, {"all_gather", "psum"}),
    ],
)
def test_in_a_ring_nobody_holds_the_keys_of_all(method, used, unused):
    attend = cut("dense", spread_of(4, method), 64, None, window=None, softcap=None, scale=1.0)
    found = primitives(jax.make_jaxpr(value_and_grads(attend))(*arrays(64, 2, 1, 8)).jaxpr)
    assert used <= set(found)
    assert not unused & set(found)


@pytest.mark.parametrize(("kept", "num_hops"), [(["attention"], 14), ([], 18)])
def test_remat_that_keeps_attention_does_not_send_keys_round_once_more(kept, num_hops):
    """Keys and values before and in the loop, ahead and back; gradients in it, after it, and home."""
    attend = cut("dense", spread_of(2, "ring"), 16, None, window=None, softcap=None, scale=1.0)
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    block = jax.checkpoint(lambda q, k, v: jnp.tanh(attend(jnp.sin(q), k, v)), policy=policy)
    loss = jax.value_and_grad(lambda q, k, v, mix: (block(q, k, v) * mix).sum(), argnums=(0, 1, 2))
    assert primitives(jax.make_jaxpr(loss)(*arrays(16, 1, 1, 8)).jaxpr)["ppermute"] == num_hops


def test_a_query_that_sees_none_of_more_keys_keeps_what_it_has():
    q, k, v, _ = (x.reshape(1, 2, 8) for x in arrays(2, 1, 1, 8))
    kernel = TableKernel(1.0, None, 8)
    own = kernel.ahead(q, k, v, Seen(None, jnp.asarray([1, 2]), True))
    o, lse = kernel.ahead(q, k, v, Seen(jnp.asarray([[0, 2]]), jnp.asarray([2, 2]), False), own)
    np.testing.assert_array_equal(o[:, 1], own[0][:, 1])
    np.testing.assert_array_equal(lse[:, :, 1], own[1][:, :, 1])
    assert lse[0, 0, 0] > own[1][0, 0, 0]


def test_every_device_has_an_early_and_a_late_piece_so_that_all_have_the_same_to_do():
    devices = [Pieces(device, 4, 2) for device in range(4)]
    positions = np.array([pieces.positions() for pieces in devices])
    assert positions[0].tolist() == [0, 1, 14, 15]
    assert sorted(positions.ravel().tolist()) == list(range(16))
    assert len({int((row + 1).sum()) for row in positions}) == 1
    for pieces, row in zip(devices, positions, strict=True):
        assert pieces.cut(jnp.arange(16)[None]).tolist() == [row.tolist()]
        assert [int(pieces.num_before(p)) for p in range(17)] == [(row < p).sum() for p in range(17)]
    gathered = jnp.asarray(positions.reshape(1, 16))
    assert devices[0].in_order(gathered).tolist() == [list(range(16))]
    assert devices[0].by_device(jnp.arange(16)[None]).tolist() == gathered.tolist()


def test_a_batch_of_any_width_is_padded_to_whole_pieces():
    spread = spread_of(4)
    batch = {"tokens": jnp.arange(1, 11)[None], "weights": jnp.ones((1, 10)), "labels": jnp.zeros((1, 3))}
    found = jax.jit(functools.partial(arrange, spread=spread))(batch)
    order = np.argsort(np.r_[0, 1, 14, 15, 2, 3, 12, 13, 4, 5, 10, 11, 6, 7, 8, 9])
    assert found["tokens"][0][order].tolist() == [*range(1, 11), *[0] * 6]
    assert found["weights"][0][order].tolist() == [1] * 10 + [0] * 6
    assert found["segments"][0][order].tolist() == [1] * 10 + [0] * 6
    assert found["begins"][0][order].tolist() == [0] * 10 + [10] * 6
    assert found["labels"].shape == (1, 3)
    cut_up = NamedSharding(spread.mesh, PartitionSpec(spread.batch, "sequence"))
    assert found["tokens"].sharding.is_equivalent_to(cut_up, 2)


def test_heads_that_flash_cannot_cut_out_are_refused_where_rows_are_cut():
    config = ModelConfig(vocab_size=8, embed_dim=80, num_layers=1, num_heads=1)
    assert pick_attention(config, "tpu") == "splash"
    with pytest.raises(UserError, match=r"mesh\.sequence.*model\.head_dim=80.*Try mesh\.sequence=1"):
        pick_attention(config, "tpu", cuts_length=True)


@pytest.mark.parametrize("method", ["gather", "ring"])
def test_it_compiles_for_tpus_with_two_kernels_a_step_of_the_ring(tpu_devices, method):
    spread = make_spread(make_mesh({"sequence": 4}, tpu_devices("v5e:2x2")), sequence_attention=method)
    place = NamedSharding(spread.mesh, PartitionSpec(None, "sequence"))
    x = jax.ShapeDtypeStruct((1, 2048, 2, 128), jnp.bfloat16, sharding=place)
    begins = jax.ShapeDtypeStruct((1, 2048), jnp.int32, sharding=place)

    def run(q, k, v, do, begins_BT):
        how = {"begins_BT": begins_BT, "window": 700, "softcap": 30.0, "scale": 0.1}
        o, pull = jax.vjp(lambda *x: attend_sequence("flash", spread, *x, **how), q, k, v)
        return (o, *pull(do))

    program = jax.jit(run).lower(x, x, x, x, begins).compile().as_text()
    num_kernels = program.count('custom_call_target="tpu_custom_call"')
    assert (
        num_kernels == {"gather": 2, "ring": 6}[method]
    )  # the ring's first and last steps stand beside its loop
    assert ("collective-permute-start" in program) == (method == "ring")
