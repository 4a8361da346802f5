"""What a block keeps for its backward pass, by the name in model.remat."""

import contextlib
import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import print_saved_residuals

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
    params = jax.eval_shape(lm.init, jax.random.key(0))
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), params)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_saved_residuals(lambda params: lm.hidden(params, batch).sum(), params)
    said = out.getvalue()
    # The activation keeps its own input, under a checkpoint of its own: that is the gate, where it is kept.
    gate = {"gate"} if re.search(r"output of remat2 .*layers\.py", said) else set()
    return gate | set(re.findall(r"named '(\w+)'", said))


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


def test_the_logits_of_a_router_are_kept_with_the_products():
    assert "router" in kept("save_dots", "tiny-mixtral")
    assert "router" not in kept("save_attention", "tiny-mixtral")


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
