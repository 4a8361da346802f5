"""Checkpoints as Hugging Face has them, made in the test: random weights of a small model, and a tokenizer."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from small_tokenizers import gpt2

from jaxlm.checkpoint import named_arrays
from jaxlm.interop import safetensors
from jaxlm.interop.families import family_for
from jaxlm.interop.hf_export import export_weights, hf_config
from jaxlm.interop.hf_import import open_source, read_params
from jaxlm.interop.safetensors import Spec, Tensors
from jaxlm.models.build import build


@functools.cache
def _shapes(model):
    return build(model, model.max_seq_len or 64).shapes


def abstract_params(model, dtype=None):
    """Shapes and dtypes of the model's params."""
    shapes = _shapes(model)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype or s.dtype), shapes)


def random_params(model, dtype="float32", scale=0.05):
    """Every weight random, those that `init` leaves at 0 or 1 as well, so that no two could be mistaken."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(0, scale, leaf.shape).astype(np.float32)).astype(dtype)

    return jax.tree.map(draw, abstract_params(model))


def write_checkpoint(folder, model, params=None, *, tokenizer=True, max_shard_bytes=1 << 40, **config):
    """A folder like one of the hub; keys of `config` are put into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    params = random_params(model) if params is None else params
    family = family_for(model)
    export_weights(folder, family, named_arrays(params), max_shard_bytes=max_shard_bytes)
    written = hf_config(
        family, model, dtype="float32", context_tokens=64, bos_id=None, eos_ids=[0], pad_id=None
    )
    (folder / "config.json").write_text(json.dumps(written | config))
    for name, content in (gpt2() if tokenizer else {}).items():
        (folder / name).write_bytes(content)
    return folder


def load(folder, dtype="float32"):
    """The params of a checkpoint folder, on one device."""
    source = open_source(folder)
    return read_params(source, abstract_params(source.model, dtype))


def tensors_of(folder):
    """Name -> array of a checkpoint folder, copied."""
    found = Tensors(folder)
    return {name: np.array(found.read(name)) for name in found.specs}


def write_tensors(folder, arrays):
    """Replaces the weights of a checkpoint folder."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    specs = {name: Spec(array.dtype, array.shape) for name, array in arrays.items()}
    safetensors.write_folder(folder, specs, arrays.__getitem__)


def assert_same_bits(found, wanted):
    """Of two trees of arrays: same paths, dtypes and bytes."""
    found, wanted = named_arrays(found), named_arrays(wanted)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert np.asarray(found[name]).tobytes() == np.asarray(array).tobytes(), name
