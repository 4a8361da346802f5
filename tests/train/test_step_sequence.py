"""A mesh that cuts the length of rows trains as one device does: both ways of attention, beside every other axis."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from slow import slow

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.objectives import OBJECTIVES
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import make_constrain, make_spread, place_batch
from jaxlm.train.config import TuneConfig
from jaxlm.train.optimizer import global_norm, square_sums
from jaxlm.train.tuning import Tuning

MODELS = {
    # Grouped queries, a window that crosses pieces and packed documents are in all of them.
    "gemma": dataclasses.replace(
        tiny.MODEL, attention_softcap=2.0, post_norm=True, qk_norm=True, remat="attention", activation="geglu"
    ),
    "learned": dataclasses.replace(tiny.MODEL, positions="learned", max_seq_len=tiny.T, tie_embeddings=True),
    "experts": dataclasses.replace(tiny.EXPERTS, remat="full"),
}
LORA = Tuning(TuneConfig(train="lora", lora_rank=2))


def training(model: ModelConfig, **kwargs) -> np.ndarray:
    """[steps, (loss, gradient norm)]; every third row ends in padding."""
    steps, mesh, state = tiny.begin(model=model, **kwargs)
    found = []
    for i in range(5):
        batch = tiny.batch(i)
        is_padding = (np.arange(tiny.B)[:, None] % 3 == 0) & (np.arange(tiny.T)[None] >= 11)
        for name in ("segments", "weights"):
            batch[name] = np.where(is_padding, 0, batch[name]).astype(batch[name].dtype)
        state, metrics = steps.train(state, place_batch(batch, mesh, tiny.B))
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found)


@functools.cache
def expected(name: str) -> np.ndarray:
    return training(MODELS.get(name, tiny.MODEL), **({"tuning": LORA} if name == "lora" else {}))


@pytest.mark.parametrize(
    ("name", "method", "sizes", "num_microbatches"),
    [
        slow("gemma", "gather", {"sequence": 8}, 1),
        slow("gemma", "ring", {"sequence": 4, "tensor": 2}, 2),
        slow("gemma", "gather", {"fsdp": 2, "sequence": 2, "tensor": 2}, 1),
        slow("gemma", "ring", {"data": 2, "sequence": 2}, 1),
        ("learned", "ring", {"fsdp": 2, "sequence": 4}, 2),
        slow("learned", "gather", {"fsdp": 2, "sequence": 2, "tensor": 2}, 1),
        slow("experts", "gather", {"expert": 2, "sequence": 4}, 1),
        slow("experts", "ring", {"fsdp": 2, "expert": 2, "sequence": 2}, 2),
        slow("lora", "ring", {"fsdp": 4, "sequence": 2}, 1),
    ],
)
def test_a_cut_length_does_not_change_training(name, method, sizes, num_microbatches):
    how = {"tuning": LORA} if name == "lora" else {}
    found = training(
        MODELS.get(name, tiny.MODEL),
        sizes=sizes,
        num_microbatches=num_microbatches,
        sequence_attention=method,
        **how,
    )
    loss, norm = found.T
    np.testing.assert_allclose(loss, expected(name)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(norm[0], expected(name)[0, 1], rtol=2e-6)
    np.testing.assert_allclose(norm, expected(name)[:, 1], rtol=5e-5)  # AdamW divides noise by its own size


def test_texts_of_any_width_are_classified_alike():
    """Their last token is on one device, and 12 tokens are not 2 x 4 pieces of equal length."""
    model = dataclasses.replace(tiny.MODEL, num_classes=3)
    rng, length_B = np.random.default_rng(0), np.array([12, 3, 7, 1])
    place_BT = np.arange(12)[None]
    batch = {
        "tokens": rng.integers(0, tiny.V, (4, 12)).astype(np.int32),
        "segments": (place_BT < length_B[:, None]).astype(np.int32),
        "positions": np.where(place_BT < length_B[:, None], place_BT, 0).astype(np.int32),
        "weights": (place_BT == length_B[:, None] - 1).astype(np.float32),
        "labels": np.array([0, 2, 1, 2], np.int32),
    }

    def loss_and_norm(sizes):
        mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
        lm = build(model, 12, constrain=make_constrain(mesh), spread=make_spread(mesh))
        loss = OBJECTIVES["classify"].make_loss(lm, num_classes=3)
        run = jax.jit(jax.value_and_grad(lambda *a: loss(*a)[0]))
        value, grads = run(jax.jit(lm.init)(jax.random.key(0)), place_batch(batch, mesh, 4))
        return float(value), float(global_norm(square_sums(grads)))

    np.testing.assert_allclose(
        loss_and_norm({"sequence": 4, "tensor": 2}), loss_and_norm(tiny.ONE), rtol=1e-5
    )
