"""Reads the text of a compiled XLA module (`compiled.as_text()`) into computations and instructions.

Only what a cost needs: names, shapes with their memory spaces, opcodes, operands, and the rest of the line as text,
out of which an attribute is read when someone asks. Two things make it more than splitting lines: metadata of Pallas
kernels spans lines, and computations for other units of a TPU end in `}, execution_thread="sparsecore"`.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxlm.types import UserError

HBM, HOST = 0, 5
"""Memory spaces: `S(5)` in a layout is memory of the host; no S is that of the device. Others are on the chip: `S(1)`
vector memory, `S(2)` and `S(4)` flags and scalars."""

_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{\s*$")
_END = re.compile(r"\}(?:, execution_thread=.*)?\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_BRACKET = re.compile(r"[()]")


class Array(NamedTuple):
    """One array of a shape."""

    dtype: str
    dims: tuple[int, ...]
    memory_space: int = HBM

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> float:
        """Without the padding of its tiles."""
        return self.size * dtype_bytes(self.dtype)


@functools.cache
def dtype_bytes(dtype: str) -> float:
    """Of one element, off its name: bf16 has 16 bits, f8e4m3fn 8, s4 half a byte; token and opaque hold nothing."""
    bits = re.search(r"\d+", dtype)
    if bits:
        return int(bits.group()) / 8
    return 1.0 if dtype == "pred" else 0.0


@functools.cache
def arrays_of(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape, those of nested tuples in a row."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = _SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        found.append(Array(dtype, sizes, int(space.group(1)) if space else HBM))
    return tuple(found)


@functools.cache
def _attribute(key: str) -> re.Pattern[str]:
    return re.compile(rf"\b{key}=%?([\w.\-]+)")


@dataclass(eq=False)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    inputs: str
    """What stands between its brackets: operands; a constant's value; a parameter's number."""
    attributes: str
    """All that comes after them, metadata and backend_config included."""

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(_NAME.findall(self.inputs))

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        return arrays_of(self.shape)

    @property
    def kind(self) -> str:
        """The opcode without the -start of an asynchronous one."""
        return self.opcode.removesuffix("-start")

    def attribute(self, key: str) -> str | None:
        """The name or number of `key=...`."""
        found = _attribute(key).search(self.attributes)
        return found.group(1) if found else None

    @functools.cached_property
    def called(self) -> str | None:
        """The computation that a fusion, call or asynchronous wrapper runs."""
        return self.attribute("calls") or self.attribute("to_apply")

    @functools.cached_property
    def index(self) -> int:
        """Which element a get-tuple-element takes."""
        return int(self.attribute("index") or 0)

    @functools.cached_property
    def estimated_cycles(self) -> float | None:
        """The compiler's own estimate; None where it gives none. It marks what it did not estimate with -1."""
        found = re.search(r'"estimated_cycles":"?(-?\d+)', self.attributes)
        return max(0.0, float(found.group(1))) if found else None


@dataclass(eq=False)
class Computation:
    """What runs as a whole: the entry, the body of a loop, a fusion."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    """In the order of the schedule."""
    root_name: str | None = None

    @property
    def root(self) -> Instruction:
        return self.instructions[self.root_name or next(reversed(self.instructions))]

    def get(self, name: str) -> Instruction | None:
        return self.instructions.get(name)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        found = (one for one in self.instructions.values() if one.opcode == "parameter")
        return {int(one.inputs): one for one in found}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> instructions that have it as an operand."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for one in self.instructions.values():
            for name in one.operands:
                found.setdefault(name, []).append(one)
        return found

    def operand_arrays(self, one: Instruction) -> list[Array]:
        """Those of all its operands."""
        known = (self.instructions[name] for name in one.operands if name in self.instructions)
        return [array for operand in known for array in operand.arrays]

    def behind(self, name: str, opcodes: tuple[str, ...]) -> Instruction | None:
        """The instruction of this name, or what it is a copy of: steps through these opcodes to their first operand."""
        found = self.get(name)
        while found is not None and found.opcode in opcodes and found.operands:
            found = self.get(found.operands[0])
        return found


class Module(NamedTuple):
    """A compiled program of one device."""

    computations: dict[str, Computation]
    entry: Computation
    num_devices: int
    """That run it: replicas x partitions."""


def parse(text: str) -> Module:
    """Reads a module. Errors: UserError where the text is none, or is cut off."""
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: Computation | None = None
    pending: list[str] = []
    for line in text.split("\n"):
        if current is None:
            header = None if line.startswith(" ") else _HEADER.match(line)
            if header:
                current = computations[header.group(2)] = Computation(header.group(2))
                entry = current if header.group(1) else entry
        elif _END.match(line):
            _add(current, pending)
            current, pending = None, []
        elif line.startswith("  ") and _INSTRUCTION.match(line):
            _add(current, pending)
            pending = [line]
        else:
            pending.append(line)
    if entry is None or current is not None or not entry.instructions:
        what = "ends inside a computation" if current is not None else "has no ENTRY computation"
        raise UserError(
            f"the text of the compiled step {what}: it has to be the whole of compiled.as_text(), which begins with "
            "HloModule and ends with a closing brace."
        )
    header = text[: text.find("\n")]
    counts = (re.search(rf"\b{key}=(\d+)", header) for key in ("num_partitions", "replica_count"))
    return Module(computations, entry, math.prod(int(count.group(1)) for count in counts if count))


def _add(computation: Computation, lines: list[str]) -> None:
    """Adds the instruction that these lines are: its own, and those over which its metadata runs on."""
    head = _INSTRUCTION.match(lines[0]) if lines else None
    if head is None:
        return
    line = lines[0] if len(lines) == 1 else " ".join(lines)
    start = head.end()
    shape_end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", shape_end)
    closing = _closing(line, opening)
    one = Instruction(
        name=head.group(2),
        opcode=line[shape_end:opening].strip(),
        shape=line[start:shape_end],
        inputs=line[opening + 1 : closing],
        attributes=line[closing + 1 :],
    )
    computation.instructions[one.name] = one
    if head.group(1):
        computation.root_name = one.name


def _closing(line: str, opening: int) -> int:
    """Where the bracket that opens here is closed."""
    depth = 0
    for bracket in _BRACKET.finditer(line, opening):
        depth += 1 if bracket.group() == "(" else -1
        if depth == 0:
            return bracket.start()
    raise UserError(f"the text of the compiled step has a bracket that is not closed: {line.strip()[:100]}")
