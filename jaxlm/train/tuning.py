"""Which weights are trained: a split of the model's weights into two trees, and the ways back to one.

    trained, frozen = tuning.split(tuning.init(key, params))
    logits = lm.head(merged, lm.hidden(merged := tuning.merge(trained, frozen), batch))
    params = tuning.whole(trained, frozen)

The optimizer sees `trained` alone, and gradients exist for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.models.build import is_axes
from jaxlm.models.quantized import dequantize, quantize, quantized_axes
from jaxlm.train.config import TuneConfig
from jaxlm.train.optimizer import INPUT_DIMS
from jaxlm.types import Params, PyTree, UserError

HEADS = ("classifier",)
"""Groups that no pretraining makes: trained in every mode."""


class Tuning(NamedTuple):
    """A split of weights. Trees are dicts of arrays, of ShapeDtypeStructs, or of logical axes, as `LM.axes`."""

    config: TuneConfig

    @property
    def freezes(self) -> bool:
        """Whether there is a frozen tree."""
        return self.config.train != "all"

    def init(self, key: jax.Array, params: Params) -> Params:
        """The weights of a model with the fresh adapters of `lora`, which leave it as it is: their b is zero.

        a is drawn as PEFT does: uniform, of variance 1 / (3 x inputs).
        """
        if self.config.train != "lora":
            return params
        rank = self.config.lora_rank

        def make(index: int, w, num_in: int):
            bound = math.prod(w.shape[1 : 1 + num_in]) ** -0.5
            a_key = jax.random.fold_in(key, index)
            a = jax.random.uniform(a_key, (*w.shape[: 1 + num_in], rank), jnp.float32, -bound, bound)
            return {"a": a, "b": jnp.zeros((w.shape[0], rank, *w.shape[1 + num_in :]), jnp.float32)}

        return self._with_adapters(params, make)

    def axes(self, axes: PyTree) -> tuple[PyTree, PyTree]:
        """`LM.axes` -> those of the trained and of the frozen tree."""
        if self.config.train == "lora":

            def make(index: int, names, num_in: int):
                return {
                    "a": (*names[: 1 + num_in], "rank"),
                    "b": ("layers", "rank", *names[1 + num_in :]),
                }

            axes = self._with_adapters(axes, make)
        return self.split(axes)

    def _with_adapters(self, params: Any, make: Callable[[int, Any, int], dict[str, Any]]) -> Any:
        """params with make(index, matrix, its input dims) for every target."""
        found: dict[str, dict[str, Any]] = {}
        for index, name in enumerate(INPUT_DIMS):
            group = next((g for g in ("attention", "mlp") if name in params["layers"].get(g, {})), None)
            if name in self.config.targets and group is not None:
                w = params["layers"][group][name]
                found.setdefault(group, {})[name] = make(index, w, INPUT_DIMS[name])
        if not found:
            raise UserError(
                f"tune.lora_targets={self.config.lora_targets!r}: the model has none of them. Try 'q,k,v,o'."
            )
        return {**params, "layers": {**params["layers"], "lora": found}}

    def split(self, params: Any) -> tuple[Any, Any]:
        """(trained, frozen); adapters are those that `init` or `axes` has put in."""
        config = self.config
        if config.train == "all":
            return params, {}
        if config.train == "head" and "classifier" not in params:
            raise UserError("tune.train='head': the model is no classifier. Try tune.train='last_blocks'.")
        trained = {name: params[name] for name in HEADS if name in params}
        layers = params["layers"]
        frozen_layers = layers
        if config.train == "last_blocks":
            n = config.num_blocks
            trained |= {name: params[name] for name in ("final_norm", "head") if name in params}
            trained["layers"], frozen_layers = _cut(layers, -n, None), _cut(layers, None, -n)
        if config.train == "lora":
            frozen_layers = {name: group for name, group in layers.items() if name != "lora"}
            if "lora" in layers:
                trained["layers"] = {"lora": layers["lora"]}
            if config.quantize is not None:
                frozen_layers = self._quantized(frozen_layers, config.quantize)
        rest = {name: group for name, group in params.items() if name not in trained}
        return trained, {**rest, "layers": frozen_layers}

    def _quantized(self, layers: Any, kind: str) -> Any:
        """Layers whose matrices are in the group `quantized`, as they are kept there."""

        def keep(w, num_in: int):
            if is_axes(w):
                return quantized_axes(w, num_in, kind)
            if isinstance(w, jax.ShapeDtypeStruct):
                return jax.eval_shape(lambda w: quantize(w, num_in, kind), w)
            # Compiled, so that its intermediate results are not all in memory.
            return jax.jit(quantize, static_argnums=(1, 2))(w, num_in, kind)

        groups, found = dict(layers), {}
        for group in ("attention", "mlp"):
            names = [name for name in INPUT_DIMS if name in groups.get(group, {})]
            if names:
                found[group] = {name: keep(groups[group][name], INPUT_DIMS[name]) for name in names}
                groups[group] = {name: w for name, w in groups[group].items() if name not in names}
        return {**groups, "quantized": found}

    def merge(self, trained: Any, frozen: Any) -> Params:
        """The weights as the functions of LM take them: the layers maybe two stacks; the b of adapters scaled."""
        if self.config.train == "all":
            return trained
        merged = {**frozen, **trained}
        if self.config.train == "last_blocks":
            merged["layers"] = [frozen["layers"], trained["layers"]]
        if self.config.train == "lora":
            scaled = {
                group: {name: {"a": w["a"], "b": w["b"] * self._scale} for name, w in adapters.items()}
                for group, adapters in trained["layers"]["lora"].items()
            }
            merged["layers"] = {**frozen["layers"], "lora": scaled}
        return merged

    @property
    def _scale(self) -> float:
        return self.config.lora_alpha / self.config.lora_rank

    def whole(self, trained: Any, frozen: Any) -> Params:
        """The weights as every other model has them: adapters added to their matrices in float32."""
        if self.config.train == "all":
            return trained
        params = {**frozen, **trained}
        if self.config.train == "last_blocks":
            params["layers"] = jax.tree.map(
                lambda lower, upper: jnp.concatenate([lower, upper]), frozen["layers"], trained["layers"]
            )
        if self.config.train == "lora":
            params["layers"] = self._added(trained["layers"]["lora"], frozen["layers"])
        return params

    def _added(self, adapters: Any, layers: Any) -> Any:
        groups = {name: dict(group) for name, group in layers.items() if name != "quantized"}
        for group, matrices in layers.get("quantized", {}).items():
            for name, w in matrices.items():
                groups.setdefault(group, {})[name] = dequantize(w, INPUT_DIMS[name])
        for group, matrices in adapters.items():
            for name, w in matrices.items():
                groups[group][name] = groups[group][name].astype(jnp.float32) + self._scale * low_rank(
                    w["a"], w["b"], INPUT_DIMS[name]
                )
        return groups


def fresh_parts(trained: Any) -> Any:
    """Of fresh weights, those that no origin may have: adapters, and the head of a classifier."""
    fresh = {name: trained[name] for name in HEADS if name in trained}
    if "lora" in trained.get("layers", {}):
        fresh["layers"] = {"lora": trained["layers"]["lora"]}
    return fresh


def with_parts(params: Any, fresh: Any) -> Any:
    """The weights of an origin, and what it does not have."""
    return {**fresh, **params, "layers": {**fresh.get("layers", {}), **params["layers"]}}


EVERYTHING = Tuning(TuneConfig())
"""Nothing is frozen."""


def _cut(layers: Any, start: int | None, stop: int | None) -> Any:
    """Some layers of a stack."""

    def cut(leaf):
        if is_axes(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            num = len(range(leaf.shape[0])[start:stop])
            return jax.ShapeDtypeStruct((num, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)
        return leaf[start:stop]

    return jax.tree.map(cut, layers, is_leaf=is_axes)


def low_rank(a: jax.Array, b: jax.Array, num_in: int) -> jax.Array:
    """The stack of matrices a b, float32. a: [L, in dims, rank]; b: [L, rank, out dims]."""
    L, rank = b.shape[:2]
    a_LIR, b_LRO = (w.astype(jnp.float32) for w in (a.reshape(L, -1, rank), b.reshape(L, rank, -1)))
    w_LIO = jnp.einsum("LIR,LRO->LIO", a_LIR, b_LRO, precision=jax.lax.Precision.HIGHEST)
    return w_LIO.reshape(*a.shape[: 1 + num_in], *b.shape[2:])
