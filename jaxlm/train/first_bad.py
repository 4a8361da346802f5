"""Where a computation first goes wrong: the operation, layer and line of code that made the first NaN or infinity.

    bad = first_bad_value(lambda params: loss(params, batch)[0], params)
    print(bad)      # nan out of log in layers[3]/mlp (layers.py:120)

The function is traced, and the trace evaluated once more with two flags for each of its values: does it hold a NaN,
does it hold an infinity. From the bad result the search goes back along bad inputs to the operation whose inputs are
good; loops and nested functions are entered, a loop one turn at a time. Each level is compiled whole, so this takes
the memory of the function and a few compilations, not an operation at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxlm.train.step import MODEL_KEYS, LossFn, split_microbatches
from jaxlm.train.tuning import EVERYTHING, Tuning
from jaxlm.types import Batch, Params

OPAQUE = ("shard_map", "pallas_call", "while")
"""Operations that are not entered: what is inside has other shapes, or no values."""

ARGUMENT = "argument"
"""In the place of an operation, for what was bad before anything was computed."""

Flags = np.ndarray
"""bool [2]: holds a NaN; holds an infinity."""


class BadValue(NamedTuple):
    """The operation that made the first bad value."""

    kind: str
    """`nan` or `inf`."""
    operation: str
    """Of JAX, such as `exp`; or ARGUMENT."""
    scope: str
    """The modules it belongs to, such as `layers[3]/mlp`, or the path of an argument."""
    line: str
    """file:line of the code that asked for it."""
    after_inf: str
    """For a NaN made of infinities: the operation that made the first infinity."""

    def __str__(self) -> str:
        if self.operation == ARGUMENT:
            return f"{self.kind} in {self.scope or 'an argument'} itself, before anything is computed"
        since = f", from an infinity out of {self.after_inf}" if self.after_inf else ""
        return f"{self.kind} out of {_place(self.operation, self.scope, self.line)}{since}"


def _place(operation: str, scope: str, line: str) -> str:
    return " ".join(filter(None, [operation, f"in {scope}" if scope else "", f"({line})" if line else ""]))


class _Way(NamedTuple):
    """How the search came to a level: names of what it entered, turn of the loop it is in."""

    scope: str = ""
    turn: int = 0
    line: str = ""

    def into(self, eqn: JaxprEqn, turn: int | None = None) -> _Way:
        return _Way(self.scope_of(eqn), self.turn if turn is None else turn, self.line_of(eqn))

    def line_of(self, eqn: JaxprEqn) -> str:
        """Where it was asked for; of an operation inside of a function of JAX's own, where that was."""
        return _line(eqn) or self.line

    def scope_of(self, eqn: JaxprEqn) -> str:
        """With the layer's number where a loop runs over layers: turn 3 of `layers[1::2]` is `layers[7]`."""
        names = re.sub(
            r"\[(\d+)::(\d+)\]",
            lambda m: f"[{int(m[1]) + self.turn * int(m[2])}]",
            str(eqn.source_info.name_stack),
        )
        while (
            inner := re.sub(r"\b(jvp|checkpoint|rematted_computation)\(([^()]*)\)", r"\2", names)
        ) != names:
            names = inner
        names = re.sub(r"\btranspose\(([^()]*)\)", r"backward/\1", names)
        parts = [part for part in f"{self.scope}/{names}".split("/") if part not in ("", "Block")]
        return "/".join(dict.fromkeys(parts))  # a function that was entered may say its name once more


def first_bad_value(function: Callable, *args: Any) -> BadValue | None:
    """The first bad value on the way to the results of function(*args); None where those are all finite.

    Args:
      function: of pytrees of arrays, differentiated or not; what it returns is searched in order.
    """
    named, _ = jax.tree_util.tree_flatten_with_path(args)
    for path, leaf in named:
        if kind := _kind(jax.jit(_flags_of)(leaf)):
            return BadValue(kind, ARGUMENT, place_of(path[1:], leaf), "", "")
    closed = jax.make_jaxpr(function)(*args)
    return _search(closed.jaxpr, closed.consts, [leaf for _, leaf in named], _Way())


def make_search(
    loss: LossFn,
    num_microbatches: int,
    *,
    dropout_seed: int | None,
    constrain_batch: Callable[[Batch], Batch],
    tuning: Tuning = EVERYTHING,
) -> Callable[[Params, Batch, int, Params], BadValue | None]:
    """search(trained weights, batch, step before this one, frozen weights): the first bad value of a train step.

    In the loss if it is bad, else in the gradients: of the microbatch that is the first to be bad.

    Args: as of `make_train_step`.
    """

    def search(params: Params, batch: Batch, step: int, frozen: Params) -> BadValue | None:
        key = None
        if dropout_seed is not None:
            key = jax.random.fold_in(jax.random.key(dropout_seed), step)
        model_batch = {name: batch[name] for name in MODEL_KEYS if name in batch}
        parts = jax.jit(split_microbatches, static_argnums=1)(model_batch, num_microbatches)
        for index in range(num_microbatches):
            part = jax.tree.map(lambda x, i=index: x[i], parts)
            part_key = None if key is None or num_microbatches == 1 else jax.random.fold_in(key, index)

            def one_loss(params: Params, part: Batch, key=key if part_key is None else part_key):
                return loss(tuning.merge(params, frozen), constrain_batch(part["batch"]), key)[0]

            args = (params, {"batch": part})
            if bad := first_bad_value(one_loss, *args) or first_bad_value(jax.grad(one_loss), *args):
                return bad
        return None

    return search


def place_of(path: Sequence[Any], leaf: jax.Array) -> str:
    """Name of a weight; of a stack, with the first layer that is bad: `layers[3]/mlp/up`."""
    name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
    if not name.startswith("layers/") or leaf.ndim == 0:
        return name
    bad_L = jax.jit(lambda w: ~jnp.isfinite(w).all(axis=tuple(range(1, w.ndim))))(leaf)
    return name.replace("layers", f"layers[{int(np.argmax(jax.device_get(bad_L)))}]", 1)


def _flags_of(value: Any) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return jnp.zeros(2, bool)
    return jnp.stack([jnp.isnan(value).any(), jnp.isinf(value).any()])


def _kind(flags: Any) -> str:
    has_nan, has_inf = np.asarray(jax.device_get(flags)).tolist()
    return "nan" if has_nan else "inf" if has_inf else ""


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> dict[Any, Any]:
    """Every variable's value; called under jit, which drops those that nobody uses."""
    every = _variables(jaxpr)
    # What its results are called no longer fits; without, JAX takes any.
    whole = jaxpr.replace(outvars=every, debug_info=jaxpr.debug_info._replace(result_paths=None))
    return dict(zip(every, eval_jaxpr(whole, consts, *args)))


def _variables(jaxpr: Jaxpr) -> list[Any]:
    made = [var for eqn in jaxpr.eqns for var in eqn.outvars]
    # What nobody uses cannot be asked for. (jax.extend has its class from 0.10 on.)
    return [*jaxpr.constvars, *jaxpr.invars, *(var for var in made if type(var).__name__ != "DropVar")]


def _read(values: dict[Any, Any], var: Any) -> Any:
    return var.val if isinstance(var, Literal) else values[var]


def _search(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], way: _Way) -> BadValue | None:
    """The first bad value on the way to the results of a level, whose arguments are as good as the caller's."""

    @jax.jit
    def all_flags(consts, args):
        values = _evaluate(jaxpr, consts, args)
        return [_flags_of(values[var]) for var in every]

    every = _variables(jaxpr)
    flags = dict(zip(every, jax.device_get(all_flags(list(consts), list(args)))))
    maker = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    results = [var for var in jaxpr.outvars if not isinstance(var, Literal) and _kind(flags[var])]
    results.sort(key=lambda var: _kind(flags[var]) != "nan")
    if not results:
        return None
    eqn = _origin(maker, flags, results[0])
    if eqn is None:  # it came in, and is passed on
        return BadValue(_kind(flags[results[0]]), ARGUMENT, way.scope, "", "")

    @jax.jit
    def inputs_of(consts, args):
        values = _evaluate(jaxpr, consts, args)
        return [_read(values, var) for var in eqn.invars]

    inner = _enter(eqn, lambda: inputs_of(list(consts), list(args)), way)
    return inner or _describe(eqn, maker, flags, way)


def _origin(maker: dict[Any, JaxprEqn], flags: dict[Any, Flags], var: Any) -> JaxprEqn | None:
    """Back from a bad value, along inputs that are bad in the same way, to where it was made."""
    eqn, kind = maker.get(var), _kind(flags[var])
    while eqn is not None:
        worse = [v for v in eqn.invars if not isinstance(v, Literal) and _kind(flags[v]) == kind]
        if not worse:
            return eqn
        eqn = maker.get(worse[0])
    return None


def _enter(eqn: JaxprEqn, inputs: Callable[[], list[Any]], way: _Way) -> BadValue | None:
    """The search goes on inside of an operation that has an inside."""
    name, params = eqn.primitive.name, eqn.params
    if name in OPAQUE:
        return None
    if name == "scan":
        return _enter_loop(eqn, inputs(), way)
    if name == "cond":
        index, *args = inputs()
        branch = params["branches"][int(index)]
        return _search(branch.jaxpr, branch.consts, args, way.into(eqn))
    for value in params.values():
        if isinstance(value, ClosedJaxpr) and len(value.jaxpr.invars) == len(eqn.invars):
            return _search(value.jaxpr, value.consts, inputs(), way.into(eqn))
        if isinstance(value, Jaxpr) and len(value.invars) == len(eqn.invars) and not value.constvars:
            return _search(value, [], inputs(), way.into(eqn))
    return None


def _loop_parts(params: dict[str, Any], inputs: list[Any]) -> list[list[Any]]:
    """What a loop reads in every turn, hands on from turn to turn, and takes one after another."""
    if "ft_in" in params:  # since JAX 0.12
        return [list(part) for part in params["ft_in"].update(inputs).unpack()]
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    return [
        inputs[:num_consts],
        inputs[num_consts : num_consts + num_carry],
        inputs[num_consts + num_carry :],
    ]


def _enter_loop(eqn: JaxprEqn, inputs: list[Any], way: _Way) -> BadValue | None:
    """One turn after another, until one makes something bad out of what is good."""
    params = eqn.params
    body, length = params["jaxpr"], params["length"]
    consts, carry, stacks = _loop_parts(params, inputs)
    num_carry = len(carry)

    @jax.jit
    def turn(args):
        values = _evaluate(body.jaxpr, body.consts, args)
        outs = [_read(values, var) for var in body.jaxpr.outvars]
        return outs[:num_carry], [_flags_of(out) for out in outs]

    for index in reversed(range(length)) if params["reverse"] else range(length):
        args = [*consts, *carry, *(stack[index] for stack in stacks)]
        carry, flags = turn(args)
        if any(map(_kind, flags)):
            return _search(body.jaxpr, body.consts, args, way.into(eqn, index))
    return None


def _describe(eqn: JaxprEqn, maker: dict[Any, JaxprEqn], flags: dict[Any, Flags], way: _Way) -> BadValue:
    kinds = [_kind(flags[var]) for var in eqn.outvars if var in flags]
    kind, after = "nan" if "nan" in kinds else "inf", ""
    infinite = [v for v in eqn.invars if not isinstance(v, Literal) and flags[v][1]]
    if kind == "nan" and infinite:
        source = _origin(maker, flags, infinite[0])
        after = (
            "" if source is None else _place(source.primitive.name, way.scope_of(source), way.line_of(source))
        )
    return BadValue(kind, eqn.primitive.name, way.scope_of(eqn), way.line_of(eqn), after)


def _line(eqn: JaxprEqn) -> str:
    # Not public; the same words stand in JAX's own error messages.
    from jax._src import source_info_util

    path = source_info_util.summarize(eqn.source_info).partition(" ")[0].rpartition("/")[2]
    return ":".join(path.split(":")[:2])
