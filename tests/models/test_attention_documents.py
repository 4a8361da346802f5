"""No way to compute attention lets a packed document see another: whole models, logits equal to the bit.

The kernels of TPUs are interpreted; of cuDNN it is the mask that it is handed, in plain operations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import slow

from jaxlm.models import attention_cudnn, attention_flash, attention_sequence, attention_splash
from jaxlm.models.build import build
from jaxlm.models.config import ATTENTIONS, ModelConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import make_constrain, make_spread

T = 256
LENGTHS = (70, 58, 101)  # the second ends at a multiple of 128; the rest is padding
PLATFORMS = {"flash": "tpu", "splash": "tpu", "cudnn": "gpu"}
CUT = [("dense", "gather"), ("chunked", "ring"), slow("flash", "gather"), ("flash", "ring")]
WAYS = [*((name, None) for name in ATTENTIONS if name != "auto"), *CUT]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Kernels of other chips, as far as a CPU can run them."""
    monkeypatch.setattr(attention_cudnn, "capability", lambda: (9, 0))
    cut = attention_sequence.attend_sequence

    def attend_sequence(kernel, *args, **how):
        return cut(kernel, *args, **how, **({"interpret": True} if kernel == "flash" else {}))

    monkeypatch.setattr(attention_sequence, "attend_sequence", attend_sequence)
    for module, name, how in (
        (attention_flash, "attend_flash", {"interpret": True}),
        (attention_splash, "attend_splash", {"interpret": True}),
        (attention_cudnn, "attend_cudnn", {"implementation": "xla"}),
    ):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), **how))


def packed():
    """A row of documents, and padding (segment 0) behind them."""
    rest = T - sum(LENGTHS)
    segments = np.repeat([*range(1, len(LENGTHS) + 1), 0], [*LENGTHS, rest]).astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (*LENGTHS, rest)]).astype(np.int32)
    tokens = np.random.default_rng(0).integers(0, 64, T).astype(np.int32)
    return {"tokens": tokens[None], "segments": segments[None], "positions": positions[None]}


@pytest.mark.parametrize(("name", "cut"), WAYS)
def test_a_document_never_sees_another_whatever_computes_attention(name, cut):  # pain 12
    config = ModelConfig(
        vocab_size=64,
        embed_dim=64,
        num_layers=2,
        num_heads=2,
        head_dim=64,
        attention=name,
        dtype="bfloat16" if name == "cudnn" else "float32",
    )
    where = {}
    if cut is not None:
        mesh = make_mesh({"sequence": 2}, jax.devices()[:2])
        where = {"constrain": make_constrain(mesh), "spread": make_spread(mesh, sequence_attention=cut)}
    lm = build(config, T, platform=PLATFORMS.get(name, "cpu"), **where)
    params = jax.jit(lambda key: jax.tree.map(lambda w: 4.0 * w, lm.init(key)))(jax.random.key(0))
    batch = packed()

    @jax.jit
    def logits(tokens):
        arranged = lm.arrange(batch | {"tokens": tokens, "targets": jnp.arange(1, T + 1)[None]})
        return lm.head(params, lm.hidden(params, arranged)), arranged["targets"]

    def of_row(tokens):
        """[T, V] in the order of the row, however it is cut; some ways make it longer, with targets of 0."""
        (found,), (place,) = map(np.asarray, logits(tokens))
        return found[place > 0][np.argsort(place[place > 0])]

    before = of_row(batch["tokens"])
    for document in range(1, len(LENGTHS) + 1):
        changed = batch["segments"][0] == document
        after = of_row(np.where(changed, (batch["tokens"] + 7) % 64, batch["tokens"]).astype(np.int32))
        np.testing.assert_array_equal(after[~changed], before[~changed])
        assert (after[changed] != before[changed]).any(axis=1).all()
