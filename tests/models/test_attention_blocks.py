"""model.attention_blocks: what is refused, what a kernel makes of it, and that the model hands it on."""

import jax
import jax.numpy as jnp
import pytest

from jaxlm.models import attention_flash, attention_splash
from jaxlm.models.attention import attend, picked_blocks
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.models.vector_memory import VMEM_BYTES
from jaxlm.run import parse, resolve
from jaxlm.types import UserError

V5E, V4 = "TPU v5 lite", "TPU v4"


def model(blocks=None, **keys):
    return ModelConfig(num_heads=2, head_dim=128, attention_blocks=blocks, **keys)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ("1024,512", "1024,512 must be three numbers, QUERIES,KEYS,DIAGONAL, such as 1024,512,256; or six"),
        ("1024,512,256,128", "must be three numbers"),
        ("1024,x,256", "1024,x,256: x must be a multiple of 128, the lanes of a TPU. Try 128."),
        ("1024,500,256", "500 must be a multiple of 128, the lanes of a TPU. Try 512."),
        ("0,0,0", "0 must be a multiple of 128"),
        ("1024,-512,256", "-512 must be a multiple of 128"),
        (
            "1024,768,256",
            "768 must divide the 1024 queries of a block. Try one of 128, 256, 512, 1024.",
        ),
        ("1024,512,256,512,1024,256", "1024 must divide the 512 queries of a block"),
    ],
)
def test_blocks_that_no_kernel_takes_are_refused_in_one_line(blocks, said):
    with pytest.raises(UserError) as caught:
        model(blocks)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"model.attention_blocks={blocks}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attention", ["dense", "chunked"])
def test_blocks_are_refused_where_the_kernel_has_none(attention):
    with pytest.raises(
        UserError, match=f"would be ignored: model.attention='{attention}' has no such blocks"
    ):
        model("512,256,128", attention=attention)


def test_a_flag_sets_and_unsets_them():
    flags = ["--config=quickstart", "--config.model.attention_blocks=512,256, 128"]
    assert resolve(parse(flags)).model.block_sizes == (512, 256, 128, 512, 256, 128)
    assert resolve(parse([*flags, "--config.model.attention_blocks=None"])).model.block_sizes is None


@pytest.mark.parametrize(
    ("kernel", "blocks", "T", "kind", "expected"),
    [
        ("flash", "2048,512,128,512,256,256", 4096, V5E, "2048,512,128,512,256,256"),
        ("flash", "512,256,128,512,256,128", 4096, V5E, "512,256,128"),  # both passes alike
        ("flash", None, 4096, V5E, "1024,512,256"),
        ("flash", None, 4096, "TPU7x", "1024,1024,256"),
        ("flash", None, 4096, "an unknown chip", "512,512,256,256,256,256"),
        ("flash", "1024,512,256", 384, V5E, "384,384,128"),  # what divides the length, and then the block
        ("flash", "1024,512,256", 1000, V5E, "1024,512,256"),  # the length is padded to 1,024
        ("flash", "4096,4096,4096", 4096, V4, "512,512,512,256,256,256"),  # what vector memory holds
        ("splash", "2048,512,128,512,256,256", 4096, V5E, "2048,512,512,256"),
        ("splash", None, 300, V5E, "384,384"),
        ("dense", None, 300, "cpu", None),
    ],
)
def test_what_is_picked_is_what_is_asked_for_if_length_and_memory_allow(kernel, blocks, T, kind, expected):
    assert picked_blocks(model(blocks), kernel, T, kind) == expected


def test_what_is_picked_is_what_the_kernels_run(monkeypatch):
    """Both tilings of a layer, of the model itself: not those of the function that tells."""
    ran = []
    monkeypatch.setattr(
        attention_flash, "attention", lambda q, k, v, first, table, *tilings: (ran.extend(tilings[:2]), q)[1]
    )
    monkeypatch.setitem(VMEM_BYTES, jax.devices()[0].device_kind, VMEM_BYTES[V5E])
    config = model("512,256,128,256,128,256", vocab_size=16, num_layers=1)
    lm = build(config, 512, platform="tpu")
    tokens = jnp.zeros((1, 512), jnp.int32)
    batch = {"tokens": tokens, "positions": tokens, "segments": tokens}
    params = lm.shapes
    jax.eval_shape(lambda params: lm.hidden(params, batch), params)
    assert [(t.q, t.kv, t.diagonal) for t in ran] == [(512, 256, 128), (256, 128, 256)]


def test_a_chip_has_blocks_of_its_own(monkeypatch):
    ran = []
    monkeypatch.setattr(
        attention_flash, "attention", lambda q, k, v, first, table, *tilings: (ran.extend(tilings[:2]), q)[1]
    )
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(attention_flash.CHIP_BLOCKS, kind, attention_flash.CHIP_BLOCKS["TPU7x"])
    monkeypatch.setitem(VMEM_BYTES, kind, VMEM_BYTES["TPU7x"])
    q = jax.ShapeDtypeStruct((1, 2048, 2, 128), jnp.bfloat16)
    how = dict(segments_BT=None, window=None, softcap=None, scale=1.0)
    jax.eval_shape(lambda q: attention_flash.attend_flash(q, q, q, **how), q)
    assert [(t.q, t.kv, t.diagonal) for t in ran] == [(1024, 1024, 256), (1024, 1024, 256)]


def test_splash_takes_the_blocks_of_the_config(monkeypatch):
    seen = []

    def make(mask, *, block_sizes, **how):
        seen.append(block_sizes)
        return lambda q, k, v, segment_ids: q

    monkeypatch.setattr(attention_splash.splash_attention_kernel, "make_splash_mha", make)
    q = jnp.zeros((1, 512, 2, 128))
    how = dict(segments_BT=None, window=None, softcap=None, scale=1.0)
    attend("splash", None, q, q, q, None, blocks=(512, 256, 128, 256, 128, 128), **how)
    assert (seen[0].block_q, seen[0].block_kv, seen[0].block_kv_compute) == (512, 256, 256)
    assert (seen[0].block_q_dkv, seen[0].block_kv_dkv, seen[0].block_q_dq, seen[0].block_kv_dq) == (
        256,
        128,
        256,
        128,
    )
