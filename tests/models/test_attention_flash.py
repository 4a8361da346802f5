"""The flash kernels compute `attend_dense`: values, all gradients, and nothing that no query sees."""

import functools

import hypothesis
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from slow import slow

from jaxlm.models.attention import Rotation, attend_dense, rope, supports
from jaxlm.models.attention_flash import Blocks, attend_flash, first_seen, pick_tiling
from jaxlm.models.vector_memory import VMEM_BYTES
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import make_spread

SMALL = Blocks(q=256, kv=128, diagonal=128, q_back=128, kv_back=128, diagonal_back=128)
UNEVEN = Blocks(q=384, kv=256, diagonal=384, q_back=256, kv_back=512, diagonal_back=128)
ONE_BLOCK_OF_KEYS = SMALL._replace(q=128, vmem_bytes=1)
DOCUMENTS = [
    1,
    1,
    126,
    70,
    58,
    1,
    40,
]  # a single token, one more at a block's last position, one across a boundary


def segments_of(lengths, T):
    """Runs of these lengths, as often as they fit; the rest is padding, segment 0."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)[: T - 30]
    return np.pad(ids, (0, T - len(ids))).astype(np.int32)[None]


def arrays(T, N, K, H, dtype=jnp.float32, B=1):
    rng = np.random.default_rng(0)
    q, mix = rng.normal(size=(2, B, T, N, H))
    k, v = rng.normal(size=(2, B, T, K, H))
    angles = jnp.asarray(rng.uniform(-3, 3, (B, T, 1, H // 2)), jnp.float32)
    turn = Rotation(jnp.cos(angles), jnp.sin(angles))
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v)), jnp.asarray(mix, jnp.float32), turn


def value_and_grads(attend, inputs, mix):
    """-> o, dq, dk, dv of a loss that weighs every output differently."""

    @jax.jit
    def run(q, k, v):
        o, pull = jax.vjp(attend, q, k, v)
        return (o, *pull(mix.astype(o.dtype)))

    return run(*inputs)


def dense_turned(q, k, v, *, rotation, **how):
    return attend_dense(*((q, k) if rotation is None else (rope(q, rotation), rope(k, rotation))), v, **how)


@pytest.mark.parametrize(
    ("T", "N", "K", "H", "window", "softcap", "packed", "turned", "blocks"),
    [
        (128, 2, 2, 128, None, None, False, False, None),  # one block
        slow(384, 4, 2, 128, None, None, True, False, SMALL),  # grouped; a length that 256 does not divide
        (1000, 2, 1, 128, None, None, True, True, UNEVEN),  # multi-query, padded
        # Two heads a block of lanes; a window below a block.
        slow(256, 4, 4, 64, 50, None, False, False, SMALL),
        slow(256, 4, 2, 64, None, 3.0, True, True, SMALL),  # whose keys are in other lanes than their queries
        (512, 2, 1, 128, 200, 2.0, True, True, SMALL),  # all at once, a window above a block
        (
            256,
            6,
            2,
            64,
            None,
            None,
            True,
            True,
            ONE_BLOCK_OF_KEYS,
        ),  # chunks of keys; three heads share a KV head
        slow(384, 2, 2, 128, 200, None, False, False, ONE_BLOCK_OF_KEYS),
    ],
)
def test_values_and_gradients_are_those_of_dense_attention(
    T, N, K, H, window, softcap, packed, turned, blocks
):
    inputs, mix, turn = arrays(T, N, K, H)
    how = dict(window=window, softcap=softcap, scale=0.11, rotation=turn if turned else None)
    how["segments_BT"] = segments_of(DOCUMENTS * 3, T) if packed else None
    expected = value_and_grads(functools.partial(dense_turned, **how), inputs, mix)
    actual = value_and_grads(
        functools.partial(attend_flash, **how, blocks=blocks, interpret=True), inputs, mix
    )
    for name, want, got in zip(("o", "dq", "dk", "dv"), expected, actual, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * jnp.abs(want).max(), err_msg=name)


def test_bfloat16_is_rounded_at_the_ends_and_between_products_only():
    inputs, mix, turn = arrays(256, 2, 1, 128, jnp.bfloat16)
    mix = mix.astype(jnp.bfloat16).astype(jnp.float32)
    how = dict(segments_BT=segments_of(DOCUMENTS, 256), window=None, softcap=None, scale=0.09, rotation=turn)
    exact = value_and_grads(
        functools.partial(dense_turned, **how), [x.astype(jnp.float32) for x in inputs], mix
    )
    actual = value_and_grads(
        functools.partial(attend_flash, **how, blocks=SMALL, interpret=True), inputs, mix
    )
    for want, got in zip(exact, actual, strict=True):
        assert got.dtype == jnp.bfloat16
        error = jnp.sqrt(jnp.mean((got.astype(jnp.float32) - want) ** 2) / jnp.mean(want**2))
        assert error < 0.006  # one rounding is 0.0017 of a normal value


@functools.cache
def compiled(kernel, window):
    (q, k, v), mix, _ = arrays(384, 2, 2, 64)
    attend = {"dense": attend_dense, "flash": functools.partial(attend_flash, blocks=SMALL, interpret=True)}[
        kernel
    ]

    @jax.jit
    def run(segments_BT):
        how = dict(segments_BT=segments_BT, window=window, softcap=None, scale=0.1)
        o, pull = jax.vjp(lambda q, k, v: attend(q, k, v, **how), q, k, v)
        return (o, *pull(mix))

    return run


@hypothesis.settings(max_examples=12)
@hypothesis.given(st.sets(st.integers(1, 383), max_size=8), st.sampled_from([None, 129]))
@hypothesis.example(set(range(100, 140)), None)
@hypothesis.example({128, 256}, 129)
def test_documents_may_begin_anywhere(begins, window):
    segments_BT = np.cumsum(np.isin(np.arange(384), list(begins))).astype(np.int32)[None]
    expected, actual = (compiled(kernel, window)(segments_BT) for kernel in ("dense", "flash"))
    for want, got in zip(expected, actual, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * jnp.abs(want).max())


@pytest.mark.parametrize(
    ("window", "blocks"),
    [slow(None, SMALL._replace(q=128)), (129, SMALL._replace(q=128)), (None, ONE_BLOCK_OF_KEYS)],
)
def test_keys_of_other_documents_and_before_the_window_are_not_touched(window, blocks):
    """Not even multiplied by 0: NaN there would show."""
    inputs, mix, _ = arrays(384, 1, 1, 128)
    segments_BT = jnp.asarray(np.repeat([[1, 2]], [128, 256], 1)) if window is None else None
    how = dict(window=window, segments_BT=segments_BT, softcap=None, scale=0.1)
    attend = functools.partial(attend_flash, **how, blocks=blocks, interpret=True)
    clean, poisoned = (
        value_and_grads(attend, (inputs[0], *(x.at[:, :128].set(value) for x in inputs[1:])), mix)
        for value in (0.0, jnp.nan)
    )
    first_clean = 128 if window is None else 256  # whose block of queries sees no key before 128
    for want, got in zip(clean[:2], poisoned[:2], strict=True):
        np.testing.assert_array_equal(got[:, first_clean:], want[:, first_clean:])
        assert np.isnan(got[:, :128]).all()
    for want, got in zip(clean[2:], poisoned[2:], strict=True):
        np.testing.assert_array_equal(got[:, 256:], want[:, 256:])


def test_a_mesh_of_rows_and_heads_changes_nothing():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spread = make_spread(mesh)
    inputs, mix, turn = arrays(256, 4, 2, 128, B=4)
    segments_BT = jnp.asarray(np.concatenate([segments_of(DOCUMENTS[i:], 256) for i in range(4)]))
    how = dict(segments_BT=segments_BT, window=None, softcap=None, scale=0.1, rotation=turn)
    expected = value_and_grads(functools.partial(dense_turned, **how), inputs, mix)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    placed = [jax.device_put(x, sharding) for x in inputs]
    attend = functools.partial(attend_flash, **how, spread=spread, blocks=SMALL, interpret=True)
    for want, got in zip(expected, value_and_grads(attend, placed, mix), strict=True):
        assert got.sharding.is_equivalent_to(sharding, 4)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * jnp.abs(want).max())
    how.update(segments_BT=None, rotation=None)
    one = jax.jit(functools.partial(attend_flash, **how, spread=spread, blocks=SMALL, interpret=True))(
        *placed
    )
    want = attend_dense(*inputs, **{name: value for name, value in how.items() if name != "rotation"})
    np.testing.assert_allclose(one, want, rtol=0, atol=1e-5 * jnp.abs(want).max())


def calls(jaxpr, name):
    """How many equations of a primitive a program has whose results are used, those inside of others included."""
    total, used = 0, {id(var) for var in jaxpr.outvars}
    for eqn in reversed(jaxpr.eqns):
        if any(id(var) in used for var in eqn.outvars):
            used |= {id(var) for var in eqn.invars}
            total += eqn.primitive.name == name
            if eqn.primitive.name != "pallas_call":
                total += sum(calls(inner, name) for inner in jax.extend.core.jaxprs_in_params(eqn.params))
    return total


@pytest.mark.parametrize(("kept", "num_kernels"), [(["attention"], 2), ([], 3)])
def test_remat_that_keeps_attention_does_not_run_the_forward_kernel_again(kept, num_kernels):
    inputs, mix, _ = arrays(256, 2, 2, 128)
    attend = functools.partial(
        attend_flash, segments_BT=None, window=None, softcap=None, scale=1.0, interpret=True
    )
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    block = jax.checkpoint(lambda q, k, v: jnp.tanh(attend(jnp.sin(q), k, v)), policy=policy)
    loss = jax.value_and_grad(lambda q, k, v: (block(q, k, v) * mix).sum(), argnums=(0, 1, 2))
    assert calls(jax.make_jaxpr(loss)(*inputs).jaxpr, "pallas_call") == num_kernels


def test_heads_stay_where_the_projections_wrote_them():
    inputs, mix, turn = arrays(256, 4, 2, 128, jnp.bfloat16)
    how = dict(segments_BT=segments_of(DOCUMENTS, 256), window=None, softcap=None, scale=1.0, rotation=turn)
    attend = functools.partial(attend_flash, **how, interpret=True)
    program = jax.make_jaxpr(lambda *x: jax.vjp(attend, *x)[1](mix.astype(jnp.bfloat16)))(*inputs)
    assert calls(program.jaxpr, "pallas_call") == 2
    for moved in ("transpose", "copy", "pad", "gather"):
        wide = [e for e in program.jaxpr.eqns if e.primitive.name == moved and e.outvars[0].aval.ndim == 4]
        assert not wide, moved


def test_the_first_key_a_query_sees_is_of_its_document_and_window():
    segments_BT = jnp.asarray([[1, 1, 1, 2, 3, 3, 0, 0]])
    assert first_seen(segments_BT, None, 1, 8).tolist() == [[0, 0, 0, 3, 4, 4, 6, 6]]
    assert first_seen(segments_BT, 2, 1, 8).tolist() == [[0, 0, 1, 3, 4, 4, 6, 6]]
    assert first_seen(None, 3, 2, 6).tolist() == [[0, 0, 0, 1, 2, 3]] * 2
    assert first_seen(None, 8, 1, 8) is None


@pytest.mark.parametrize(
    ("head_dim", "num_heads", "kv_heads", "expected"),
    [
        (128, 32, 8, True),
        (128, 3, 1, True),
        (256, 8, 4, True),
        (64, 12, 12, True),
        (64, 14, 2, True),
        (64, 12, 1, False),  # keys of one head cannot be cut out of a block of lanes
        (64, 3, 3, False),
        (80, 32, 32, False),
        (96, 32, 32, False),
        (192, 4, 4, False),
        (128, 3, 2, False),
    ],
)
def test_supports_says_which_heads_the_kernels_cut_out(head_dim, num_heads, kv_heads, expected):
    assert supports(head_dim, num_heads, kv_heads) is expected


@pytest.mark.parametrize(
    ("kind", "T", "chunks"),
    [
        ("TPU v5 lite", 8192, (8192, 8192)),
        ("TPU v5 lite", 32768, (32768, 16384)),
        ("TPU v5", 8192, (8192, 4096)),
        ("TPU v4", 2048, (2048, 512)),
    ],
)
def test_vector_memory_holds_as_many_keys_as_fit(kind, T, chunks):
    x = jax.ShapeDtypeStruct((1, T, 32, 128), jnp.bfloat16)
    how = dict(scale=1.0, softcap=None, limited=True, rotated=True)
    blocks = Blocks(vmem_bytes=VMEM_BYTES[kind])
    assert tuple(pick_tiling(x, 8, blocks, back=back, **how).chunk for back in (False, True)) == chunks


def test_compiled_for_a_tpu_nothing_is_copied_around_the_kernels(tpu_devices):
    place = jax.sharding.SingleDeviceSharding(tpu_devices("v5e:2x2")[0])
    wide, narrow = (jax.ShapeDtypeStruct((2, 512, 4 * 128), jnp.bfloat16, sharding=place) for _ in range(2))

    def run(q, k, v, do):
        heads = (x.reshape(2, 512, 4, 128) for x in (q, k, v))
        o, pull = jax.vjp(
            lambda *x: attend_flash(*x, segments_BT=None, window=None, softcap=None, scale=1.0), *heads
        )
        return o.reshape(do.shape), *(x.reshape(do.shape) for x in pull(do.reshape(o.shape)))

    program = jax.jit(run).lower(wide, narrow, narrow, wide).compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 2
    assert " copy(" not in program
    assert " transpose(" not in program
