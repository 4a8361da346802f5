"""Attention by cuDNN: its mask in plain operations, what the kernel is handed, and the kernel where there is a GPU."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn

from jaxlm.models import attention_cudnn
from jaxlm.models.attention import attend_dense, describe_attention, pick_attention
from jaxlm.models.attention_cudnn import attend_cudnn
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import make_constrain, make_spread
from jaxlm.types import UserError

A100, H100, B200 = (8, 0), (9, 0), (10, 0)
MODEL = ModelConfig(vocab_size=64, embed_dim=512, num_heads=4, num_kv_heads=2, dtype="bfloat16")
CASES = [
    (64, 4, None, True),  # multi-head
    (65, 2, None, True),  # grouped, of odd length
    (64, 1, 5, True),  # multi-query; the window is in the mask
    (64, 2, 5, False),  # the window is the kernel's
    (64, 2, None, False),
    (33, 2, 100, False),  # window longer than the row
]


def inputs(T, K, packed, dtype, H=64):
    """(q, k, v, segments) of two rows of documents."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, T, heads, H)), dtype) for heads in (4, K, K))
    segments = jnp.asarray(np.sort(rng.integers(0, 4, (2, T))), jnp.int32) if packed else None
    return q, k, v, segments


def compare(implementation, T, K, window, packed, dtype, atol):
    """`attend_cudnn` and its gradients against dense attention in float32."""
    q, k, v, segments = inputs(T, K, packed, dtype)
    how = {"segments_BT": segments, "window": window, "softcap": None, "scale": 0.2}
    g = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def both(attend, q, k, v, g):
        o, pull = jax.vjp(lambda *qkv: attend(*qkv, **how), q, k, v)
        return o, *pull(g)

    ours = both(functools.partial(attend_cudnn, implementation=implementation), q, k, v, g)
    for a, b in zip(ours, both(attend_dense, *(x.astype(jnp.float32) for x in (q, k, v, g))), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=atol)


@pytest.mark.parametrize(("T", "K", "window", "packed"), CASES)
def test_its_mask_is_that_of_dense_attention(T, K, window, packed):
    compare("xla", T, K, window, packed, jnp.float32, 2e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize(("T", "K", "window", "packed"), CASES)
def test_the_kernel_computes_dense_attention(T, K, window, packed):
    compare("cudnn", T, K, window, packed, jnp.bfloat16, 0.06)


@pytest.fixture
def lowered_for(monkeypatch):
    """f, arguments -> calls of cuDNN in f as it is lowered for GPUs: (target, shapes of operands, backend config).

    JAX asks for the version of cuDNN while it traces; nothing else of a GPU is needed.
    """
    monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91_000)

    def calls(f, *args):
        text = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        found = re.findall(
            r'custom_call @__cudnn\$(\w+)\(.*?backend_config = "(.*?)",? .*? : \((.*?)\) ->', text
        )
        return [
            (
                target,
                shapes,
                json.loads(config.replace("\\22", '"').replace('"\\', '"'))["cudnn_fmha_backend_config"],
            )
            for target, config, shapes in found
        ]

    return calls


def gradient(window, spread=None):
    """Of attention, with respect to queries, keys and values."""

    def loss(q, k, v, segments):
        how = {"segments_BT": segments, "window": window, "softcap": None, "scale": 0.125, "spread": spread}
        return attend_cudnn(q, k, v, **how).astype(jnp.float32).sum()

    return jax.grad(loss, argnums=(0, 1, 2))


def test_a_row_of_one_document_is_causal_without_a_mask(lowered_for):
    calls = lowered_for(gradient(None), *inputs(64, 2, False, jnp.bfloat16))
    assert [target for target, _, _ in calls] == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    for _, shapes, config in calls:
        assert config["mask_type"] == "CAUSAL"
        assert config["fmha_scale"] == 0.125
        assert config["sliding_window_length"] == 0
        assert shapes.count("2x64x2x64xbf16") == 2  # keys and values are not repeated


def test_a_window_is_the_kernels_own(lowered_for):
    calls = lowered_for(gradient(5), *inputs(64, 2, False, jnp.bfloat16))
    assert [config["sliding_window_length"] for _, _, config in calls] == [5, 5]


def test_documents_and_their_window_are_a_mask_that_all_heads_share(lowered_for):
    calls = lowered_for(gradient(5), *inputs(65, 2, True, jnp.bfloat16))
    assert [target for target, _, _ in calls] == ["fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"]
    for _, shapes, config in calls:
        assert config["mask_type"] == "CAUSAL"
        assert config["sliding_window_length"] == 0
        assert "2x1x66x66xbf16" in shapes  # of even length


def test_on_a_mesh_every_device_calls_it_for_its_own_rows_and_heads(lowered_for):
    spread = make_spread(make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4]))
    calls = lowered_for(gradient(None, spread), *inputs(64, 2, True, jnp.bfloat16))
    assert len(calls) == 2
    for _, shapes, _ in calls:
        assert "1x64x2x64xbf16" in shapes
        assert "1x64x1x64xbf16" in shapes


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("remat", ["none", "save_attention", "full"])
def test_a_model_trains_with_it(lowered_for, monkeypatch, scan_layers, remat):
    monkeypatch.setattr(attention_cudnn, "capability", lambda: A100)
    model = dataclasses.replace(MODEL, num_layers=2, remat=remat, scan_layers=scan_layers)
    lm = build(model, 64, platform="gpu")
    tokens = jnp.zeros((2, 64), jnp.int32)
    params = lm.shapes
    calls = lowered_for(
        jax.grad(lambda params: lm.hidden(params, {"tokens": tokens, "segments": tokens}).sum()), params
    )
    backward = [target for target, _, _ in calls if target.endswith("Backward")]
    assert len(backward) == (1 if scan_layers else 2)


def test_a_model_on_a_mesh_hands_each_device_its_part(lowered_for, monkeypatch):
    monkeypatch.setattr(attention_cudnn, "capability", lambda: A100)
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    model = dataclasses.replace(MODEL, num_layers=2)
    lm = build(model, 64, platform="gpu", constrain=make_constrain(mesh), spread=make_spread(mesh))
    tokens = jnp.zeros((4, 64), jnp.int32)
    params = lm.shapes
    calls = lowered_for(lambda params: lm.hidden(params, {"tokens": tokens, "segments": tokens}), params)
    assert [shapes.split(", tensor<")[:2] for _, shapes, _ in calls] == [
        ["tensor<2x64x2x128xbf16>", "2x64x1x128xbf16>"]
    ]


def test_auto_takes_it_where_it_can(monkeypatch):
    monkeypatch.setattr(attention_cudnn, "capability", lambda: A100)
    assert pick_attention(MODEL, "gpu") == "cudnn"
    assert describe_attention(MODEL, "gpu") == "cudnn (auto)"


@pytest.mark.parametrize(
    ("gpu", "changes", "why"),
    [
        (None, {}, "this GPU is not NVIDIA's"),
        ((7, 5), {}, "compute capability 7.5 is below 8.0"),
        (A100, {"dtype": "float32"}, "model.dtype='float32'"),
        (A100, {"attention_softcap": 50.0}, "model.attention_softcap=50.0"),
        (A100, {"head_dim": 36}, "heads of a multiple of 8 channels up to 128, and model.head_dim=36"),
        (A100, {"head_dim": 256}, "up to 128, and model.head_dim=256"),
        (B200, {"head_dim": 256}, "up to 128, and model.head_dim=256"),
    ],
)
def test_where_it_cannot_auto_says_why_and_a_wish_is_refused(monkeypatch, gpu, changes, why):
    monkeypatch.setattr(attention_cudnn, "capability", lambda: gpu)
    model = dataclasses.replace(MODEL, **changes)
    assert pick_attention(model, "gpu") == "dense"
    said = describe_attention(model, "gpu")
    assert said.startswith("dense (auto; not cudnn: ")
    assert why in said
    with pytest.raises(UserError, match=re.escape(why)):
        pick_attention(dataclasses.replace(model, attention="cudnn"), "gpu")


def test_hopper_has_wider_heads(monkeypatch):
    monkeypatch.setattr(attention_cudnn, "capability", lambda: H100)
    assert pick_attention(dataclasses.replace(MODEL, head_dim=256), "gpu") == "cudnn"


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_other_platforms_do_not_have_it(platform):
    with pytest.raises(UserError, match=f"'cudnn' is a kernel of GPUs, and this is a {platform}"):
        pick_attention(dataclasses.replace(MODEL, attention="cudnn"), platform)


def test_this_machine_says_what_its_gpu_is():
    assert (attention_cudnn.capability() is None) == (jax.default_backend() != "gpu")
