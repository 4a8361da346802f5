"""Weights far from initialisation, where attention is uniform and norms and biases do nothing."""

import jax
import numpy as np

from jaxlm.models.build import LM
from jaxlm.models.config import ModelConfig
from jaxlm.types import Params


def loud_weights(config: ModelConfig, lm: LM, seed: int) -> Params:
    """Random ones, of NumPy: nothing is compiled. Matrices are eight times as large as those of a new model."""
    rng = np.random.default_rng(seed)

    def make(path, struct):
        noise = rng.standard_normal(struct.shape, np.float32)
        name = path[-1].key
        if name == "scale":
            return (0.0 if config.norm == "rmsnorm_plus_one" else 1.0) + 0.2 * noise
        return (0.2 if "bias" in name else 0.16) * noise

    shapes = lm.shapes
    return jax.device_put(jax.tree_util.tree_map_with_path(make, shapes))
