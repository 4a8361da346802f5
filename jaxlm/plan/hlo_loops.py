"""How often a while loop of a compiled module runs its body.

The TPU compiler's text seldom says (`known_trip_count`), but the condition does: it compares a counter, which the body
moves on, with a limit; all three are integers that can be followed through tuples, copies, fusions and the loops
around. So the loop is run here, on those integers alone, until its condition says no.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxlm.plan.hlo import Computation, Instruction, Module

MAX_TRIPS = 100_000
"""A loop that runs longer than this is not counted: no step has one, and to run it here would take seconds."""

COPIES = (
    "copy",
    "bitcast",
    "convert",
    "reshape",
    "copy-done",
    "copy-start",
    "broadcast",
    "optimization-barrier",
)
"""Opcodes whose result is their first operand, as far as one integer is concerned."""

_KNOWN_COUNT = re.compile(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)')
_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
}
_COMPARISONS: Mapping[str | None, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "NE": lambda a, b: a != b,
    "EQ": lambda a, b: a == b,
}

Argument = Callable[[int, int | None], int | None]
"""(number of a parameter, element of its tuple or None) -> its value, or None where that is not known."""


def nothing_known(number: int, element: int | None) -> int | None:
    """Of the parameters of the entry."""
    return None


class Integers:
    """The integers that are known in one computation, run with some arguments."""

    def __init__(self, module: Module, computation: Computation, argument: Argument = nothing_known) -> None:
        self.module = module
        self.computation = computation
        self.argument = argument
        self._known: dict[str, int | None] = {}

    def value(self, name: str) -> int | None:
        """Of an instruction whose result is one number; True is 1."""
        if name not in self._known:
            self._known[name] = None  # should it lead back to itself
            self._known[name] = self._value(name)
        return self._known[name]

    def _value(self, name: str) -> int | None:
        one = self.computation.get(name)
        if one is None:
            return None
        if one.opcode == "constant":
            text = one.inputs.strip()
            return {"true": 1, "false": 0}.get(text) if not re.fullmatch(r"-?\d+", text) else int(text)
        if one.opcode == "parameter":
            return self.argument(int(one.inputs), None)
        if one.opcode in COPIES:
            return self.value(one.operands[0])
        if one.opcode == "get-tuple-element":
            return self.element(one.operands[0], one.index)
        if one.opcode == "fusion":
            inner = self.inside(one)
            return None if inner is None else inner.value(inner.computation.root.name)
        if one.opcode == "compare" or one.opcode in _ARITHMETIC:
            values = [self.value(operand) for operand in one.operands]
            if len(values) != 2 or values[0] is None or values[1] is None:
                return None
            known = _ARITHMETIC.get(one.opcode) or _COMPARISONS[one.attribute("direction")]
            return int(known(values[0], values[1]))
        return None

    def element(self, name: str, index: int) -> int | None:
        """Of an instruction whose result is a tuple: one element of it."""
        one = self.computation.get(name)
        if one is None:
            return None
        if one.opcode == "parameter":
            return self.argument(int(one.inputs), index)
        if one.opcode == "tuple":
            return self.value(one.operands[index])
        if one.opcode in COPIES:
            return self.element(one.operands[0], index)
        if one.opcode == "fusion":
            inner = self.inside(one)
            return None if inner is None else inner.element(inner.computation.root.name, index)
        if one.opcode == "while":
            body = self.module.computations[one.attribute("body") or ""]
            return self.element(one.operands[0], index) if index in unchanged(body) else None
        return None

    def inside(self, one: Instruction) -> Integers | None:
        """Those of the computation that a fusion or call runs."""
        called = self.module.computations.get(one.called or "")
        return None if called is None else Integers(self.module, called, self.arguments(one.operands))

    def arguments(self, operands: tuple[str, ...]) -> Argument:
        """What these operands, as the parameters of another computation, are known to be."""

        def argument(number: int, element: int | None) -> int | None:
            if number >= len(operands):
                return None
            operand = operands[number]
            return self.value(operand) if element is None else self.element(operand, element)

        return argument


def unchanged(body: Computation) -> set[int]:
    """Elements of a loop's tuple that its body hands on as they are."""
    root = body.root
    found = set()
    for index, name in enumerate(root.operands if root.opcode == "tuple" else ()):
        one = body.behind(name, COPIES)
        if one is not None and one.opcode == "get-tuple-element" and one.index == index:
            source = body.get(one.operands[0])
            if source is not None and source.opcode == "parameter":
                found.add(index)
    return found


class Trips(NamedTuple):
    """What is known of one loop."""

    trip_count: int | None
    """How often the body runs each time the loop is reached; None where that depends on data."""
    assumed_start: bool
    """Its first counter is not in the text: taken as 0."""
    body: Integers
    """What is known inside the body, in all of its runs."""


def trips(known: Integers, loop: Instruction) -> Trips:
    """Counts a while loop.

    Args:
      known: the integers of the computation that it stands in.
    """
    computations = known.module.computations
    body = computations[loop.attribute("body") or ""]
    condition = computations[loop.attribute("condition") or ""]
    width = len(body.root.operands) if body.root.opcode == "tuple" else 0
    start = {index: known.element(loop.operands[0], index) for index in range(width)}
    fixed = unchanged(body)
    always = {index: value for index, value in start.items() if index in fixed}
    inside = Integers(
        known.module, body, lambda number, element: always.get(-1 if element is None else element)
    )
    stated = _KNOWN_COUNT.search(loop.attributes)
    if stated:
        return Trips(int(stated.group(1)), False, inside)
    counters = _depends_on(known.module, condition) - fixed
    count = _run(known.module, body, condition, start, counters)
    if count is not None:
        return Trips(count, False, inside)
    unknown = [index for index in counters if start.get(index) is None]
    if len(unknown) == 1:  # with more, one of them may well be the limit
        count = _run(known.module, body, condition, start | {unknown[0]: 0}, counters) or None
    return Trips(count, count is not None, inside)


def _depends_on(module: Module, condition: Computation) -> set[int]:
    """The elements of the loop's tuple that its condition looks at."""
    seen: set[int] = set()

    def argument(number: int, element: int | None) -> int | None:
        if element is not None:
            seen.add(element)
        return 0

    Integers(module, condition, argument).value(condition.root.name)
    return seen


def _run(
    module: Module,
    body: Computation,
    condition: Computation,
    start: Mapping[int, int | None],
    counters: set[int],
) -> int | None:
    """How often the condition holds; None where it, or how a counter moves on, is not known."""
    state = dict(start)

    def argument(number: int, element: int | None) -> int | None:
        return state.get(-1 if element is None else element)

    results = body.root.operands
    for count in range(MAX_TRIPS):
        goes_on = Integers(module, condition, argument).value(condition.root.name)
        if goes_on is None:
            return None
        if not goes_on:
            return count
        inside = Integers(module, body, argument)
        moved = {index: inside.value(results[index]) for index in counters}
        if moved.items() <= state.items():
            return None  # it stands still
        state |= moved
    return None
