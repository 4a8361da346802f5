"""What a block keeps for its backward pass, by the name in model.remat."""

import contextlib
import dataclasses
import io
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax._src.ad_checkpoint import saved_residuals
from jax.ad_checkpoint import print_saved_residuals
from slow import slow

from jaxlm.models import sizes
from jaxlm.models.build import build
from jaxlm.models.config import ModelConfig
from jaxlm.types import UserError

B, T = 2, 8


def kept(remat: str, name: str = "tiny-llama") -> set[str]:
    """Names of what the blocks keep: read off JAX's own list of residuals of the unrolled model."""
    model = dataclasses.replace(sizes.size(name), remat=remat, scan_layers=False)
    lm = build(model, T)
    batch = {"tokens": jnp.zeros((B, T), jnp.int32)}
    params = lm.shapes
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), params)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_saved_residuals(lambda params: lm.hidden(params, batch).sum(), params)
    said = out.getvalue()
    # Activations keep their own inputs, under checkpoints of their own: the gate, and of experts what it is times too.
    inputs = {"gate"} if re.search(r"output of remat2 .*layers\.py", said) else set()
    inputs |= {"gate", "up"} if re.search(r"output of remat2 .*\(mix\)", said) else set()
    return inputs | set(re.findall(r"named '(\w+)'", said))


@pytest.mark.parametrize(
    ("remat", "names"),
    [
        ("full", set()),
        ("save_attention", {"attention"}),
        ("save_dots", {"q", "k", "v", "o", "gate", "up"}),
        ("minimal", {"q", "k", "v", "attention", "o", "gate", "up"}),
        ("q,k,v", {"q", "k", "v"}),
        ("attention, up", {"attention", "up"}),
    ],
)
def test_a_policy_keeps_what_it_names_and_nothing_else(remat, names):
    # `down` is never among them: it goes into the residual stream alone, and nobody needs it again.
    assert kept(remat) == names


@pytest.mark.parametrize(
    ("remat", "names"),
    [
        ("full", set()),
        ("save_attention", {"attention"}),
        ("save_dots", {"q", "k", "v", "o", "gate", "up", "router"}),
        ("minimal", {"q", "k", "v", "attention", "o", "gate", "up", "router"}),
    ],
)
def test_of_experts_the_logits_of_their_router_are_kept_too(remat, names):
    # Nor is `down`: what it is times is weighed before.
    assert kept(remat, "tiny-mixtral") == names


def kept_floats(remat: str, name: str, scan_layers: bool = False) -> float:
    """Float32 numbers that a block keeps for each token: of two more rows of one more block, what JAX lists."""

    def all_of(num_layers: int, num_rows: int) -> int:
        model = dataclasses.replace(
            sizes.size(name), remat=remat, scan_layers=scan_layers, num_layers=num_layers
        )
        lm = build(model, T)
        batch = {key: jnp.ones((num_rows, T), jnp.int32) for key in ("tokens", "segments")}
        params = lm.shapes
        found = saved_residuals(lambda params: lm.hidden(params, batch).sum(), params)
        return sum(math.prod(array.shape) * array.dtype.itemsize for array, _ in found)

    more_rows = [all_of(num_layers, 2 * B) - all_of(num_layers, B) for num_layers in (2, 3)]
    return (more_rows[1] - more_rows[0]) / (B * T) / 4


D, NH, KH = 32, 4 * 16, 2 * 16  # of both models: width, and those of queries, and of keys
DENSE_F, EXPERT_F, E, NUM_CHOSEN = 96, 32, 8, 2


@pytest.mark.parametrize(
    ("remat", "floats"),
    [
        ("full", D),  # its input, which is never computed again
        ("save_attention", D + NH),
        ("save_dots", D + NH + 2 * KH + D + 2 * DENSE_F),  # input; q; k, v; o; gate, up
        ("minimal", D + NH + 2 * KH + D + 2 * DENSE_F + NH),
        ("none", 840),
    ],
)
def test_a_block_keeps_so_much_of_a_token(remat, floats):
    assert kept_floats(remat, "tiny-llama") == floats


@pytest.mark.parametrize(
    ("remat", "floats"),
    [
        slow("full", D),
        slow("save_attention", D + NH),
        slow("save_dots", D + NH + 2 * KH + D + E + NUM_CHOSEN * 2 * EXPERT_F),
        slow("minimal", D + NH + 2 * KH + D + E + NUM_CHOSEN * 2 * EXPERT_F + NH),
        ("none", 734),
    ],
)
def test_a_block_of_experts_keeps_so_much_of_a_token(remat, floats):
    assert kept_floats(remat, "tiny-mixtral") == floats


@pytest.mark.parametrize("name", [slow("tiny-llama"), "tiny-mixtral"])
def test_a_scan_keeps_the_same(name):
    assert kept_floats("minimal", name, scan_layers=True) == kept_floats("minimal", name)


def test_names_are_read_off_the_list():
    model = ModelConfig(remat="q, attention,input@host,up@host")
    assert model.kept == ("q", "attention")
    assert model.kept_on_host == ("input", "up")


@pytest.mark.parametrize(
    ("remat", "said"),
    [
        ("dots", "save_dots"),
        ("q,k,attn", "'attn'"),
        ("input", "input@host"),
        ("minimal,q", "'minimal'"),
        ("q@disk", "q@host"),
    ],
)
def test_a_name_that_cannot_be_kept_is_refused_with_the_nearest(remat, said):
    with pytest.raises(UserError, match=r"model\.remat") as error:
        ModelConfig(remat=remat)
    assert said in str(error.value)
