"""States to save, and ways to damage what was saved, for the tests of checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.checkpoint import Checkpoints
from jaxlm.checkpoint_meta import Meta
from jaxlm.train.config import CheckpointConfig
from jaxlm.train.step import TrainState

KEEP_ALL = CheckpointConfig(every_steps=1, keep_last=100)


def make_mesh(num_devices):
    return Mesh(np.array(jax.devices()[:num_devices]), ("fsdp",), axis_types=(AxisType.Auto,))


def shardings(tree, num_devices):
    mesh = make_mesh(num_devices)

    def one(x):
        split = x.ndim > 0 and x.shape[0] % num_devices == 0
        return NamedSharding(mesh, PartitionSpec("fsdp") if split else PartitionSpec())

    return jax.tree.map(one, tree)


def make_state(num_devices=8, width=16, seed=0):
    """A TrainState with a real optimizer state: named tuples, empty nodes, scalars, bfloat16."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    layers = {"q": draw(8, width, 4), "norm": draw(8, width).astype(jnp.bfloat16)}
    params = {"embed": draw(64, width), "layers": layers, "head": draw(7, 3)}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    zero = jnp.int32(0)
    state = TrainState(zero, params, tx.init(params), zero, zero, jnp.float32(0.1))
    state = jax.tree.map(lambda x: np.asarray(x) + draw(*x.shape).astype(x.dtype), state)
    return jax.device_put(state, shardings(state, num_devices))


def abstract(state, num_devices=None):
    target = (
        jax.tree.map(lambda x: x.sharding, state) if num_devices is None else shardings(state, num_devices)
    )
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, target)


def assert_same_bits(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected)):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(directory, steps, policy=KEEP_ALL, **kwargs):
    """Saves one state per step, which differ; returns them."""
    states = {step: make_state(seed=step, **kwargs) for step in steps}
    with Checkpoints(directory, policy) as checkpoints:
        for step, state in states.items():
            assert checkpoints.save(state, Meta(step, tokenizer_sha256="a" * 64))
    return states


def flip(path, offset=None, bit=0):
    content = bytearray(path.read_bytes())
    offset = len(content) // 2 if offset is None else offset
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def data_file(folder):
    files = (
        p for p in (folder / "state").rglob("*") if p.is_file()
    )  # the seal of a small checkpoint is larger
    return max(files, key=lambda p: p.stat().st_size)
