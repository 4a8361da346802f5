"""Slices of TPUs by name, such as v5e:16x16: which exist, and how their compiler is asked for one. No devices, no JAX.

A name is CHIP:SHAPE, as libtpu takes it; a shape counts chips along each dimension of their network, which is a
rectangle for v5e and v6e and a box for v4, v5p and tpu7x. The compiler takes far more shapes than anybody can rent, so
a shape is also held against the numbers of chips of hardware.yaml:

- a rectangle: one shape for each number of chips, as square as a power of two gets (2x4, 8x16);
- a box of up to 32 chips: 2x2x1, 2x2x2, 2x2x4, 2x4x4; a larger one is made of cubes of 4x4x4, its dimensions ascend,
  and it has no more chips than the largest slice (https://docs.cloud.google.com/tpu/docs/v4 and /v5p, read 2026-11-26).

`cpu:8` stands for eight fake CPU devices: what is sharded how can be seen on them, and no time.

What libtpu was seen to do (0.0.42.1 and 0.0.46, 2026-11-26): four chips make a host, so one chip alone has to be asked
for by `chips_per_host_bounds`; a v4 chip is two devices unless its configuration is `megacore`, as on Google Cloud.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlm.config import nearest
from jaxlm.plan.hardware import CHIPS, Chip
from jaxlm.types import UserError

DIMS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
"""Chip -> dimensions of its network."""

OTHER_NAMES = {
    "v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v6": "v6e", "trillium": "v6e", "v7": "tpu7x", "v7x": "tpu7x",
    "tpu7": "tpu7x", "ironwood": "tpu7x",
}  # fmt: skip
"""What else people call them: named in errors, not taken."""

CPU = "cpu"
MOST_CPUS = 1024
"""Fake devices: each is a few threads."""
MOST_SLICES = 256

SMALL_BOXES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
CUBE = 4
CHIPS_PER_HOST = 4

_NAME = re.compile(r"([A-Za-z0-9_]+)(?:[:=_-](.*))?")
_SHAPE = re.compile(r"\d{1,5}(x\d{1,5}){0,2}")


class Topology(NamedTuple):
    """Devices that need not be there."""

    chip: Chip | None
    """None: fake CPU devices."""
    shape: tuple[int, ...]
    """Chips of a slice along each dimension."""
    num_slices: int = 1

    @property
    def slice_name(self) -> str:
        """As libtpu takes it: v5e:16x16."""
        return f"{self.chip.name if self.chip else CPU}:{shape_name(self.shape)}"

    @property
    def name(self) -> str:
        """For people: 2 x v5e:16x16."""
        return self.slice_name if self.num_slices == 1 else f"{self.num_slices} x {self.slice_name}"

    @property
    def platform(self) -> str:
        """What JAX calls it."""
        return "tpu" if self.chip else CPU

    @property
    def num_chips(self) -> int:
        return self.num_slices * math.prod(self.shape)

    @property
    def devices_per_slice(self) -> int:
        """JAX devices."""
        return math.prod(self.shape) * (self.chip.devices_per_chip if self.chip else 1)

    @property
    def num_devices(self) -> int:
        return self.num_slices * self.devices_per_slice

    @property
    def num_hosts(self) -> int:
        """Machines, of four chips as libtpu has them by default."""
        return self.num_slices * -(-math.prod(self.shape) // CHIPS_PER_HOST) if self.chip else 1

    @property
    def libtpu_options(self) -> dict[str, Any]:
        """Arguments of `jax.experimental.topologies.get_topology_desc` beside the name."""
        options: dict[str, Any] = {}
        if self.num_slices > 1:
            options["num_slices"] = self.num_slices
        if self.chip is not None and math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        if self.chip is not None and self.chip.name == "v4":
            options["chip_config_name"] = "megacore"
        return options


def shape_name(shape: tuple[int, ...]) -> str:
    """16x16"""
    return "x".join(map(str, shape))


def shapes(chip: str) -> Iterator[tuple[int, ...]]:
    """Every shape of a slice of this chip, by number of chips, then the one that is nearest to a cube first."""
    counts = CHIPS[chip].slices.counts
    if DIMS[chip] == 2:
        for count in counts:
            short = 2 ** (int(math.log2(count)) // 2)
            yield short, count // short
        return
    yield from (box for box in SMALL_BOXES if math.prod(box) in counts)
    most = counts[-1] // CUBE**3
    cubes = [
        (a, b, c)
        for a in range(1, most + 1)
        for b in range(a, most // a + 1)
        for c in range(b, most // (a * b) + 1)
        if a * a * a <= most
    ]
    for a, b, c in sorted(cubes, key=lambda box: (math.prod(box), sum(box))):
        yield CUBE * a, CUBE * b, CUBE * c


def usual_shapes(chip: str) -> Iterator[tuple[int, ...]]:
    """For each number of chips of hardware.yaml the shape that is nearest to a square or a cube."""
    counts, seen = CHIPS[chip].slices.counts, set()
    for shape in shapes(chip):
        if math.prod(shape) in counts and math.prod(shape) not in seen:
            seen.add(math.prod(shape))
            yield shape


def parse(text: str | None, num_slices: int = 1) -> Topology:
    """The topology of --topology and --num-slices.

    Errors: UserError that names the nearest valid choices.
    """
    if not text:
        raise UserError(
            "--topology=CHIP:SHAPE is needed: what to compile for, such as v5e:2x4 or v5p:4x4x4; chips: "
            f"{', '.join(DIMS)}; cpu:8 for fake CPU devices."
        )
    match = _NAME.fullmatch(text)
    chip = match[1] if match else text
    if chip == CPU:
        return _cpus(text, (match and match[2]) or "", num_slices)
    _check_chip(text, chip)
    assert match is not None
    given = match[2] or ""
    shape = _shape(chip, text, given)
    if not 1 <= num_slices <= MOST_SLICES:
        raise UserError(
            f"--num-slices={num_slices} must be in [1, {MOST_SLICES}]: how many slices of {chip}:{shape_name(shape)} "
            "the run is spread over."
        )
    return Topology(CHIPS[chip], shape, num_slices)


def _cpus(text: str, given: str, num_slices: int) -> Topology:
    if not re.fullmatch(r"\d{1,5}", given) or not text.startswith("cpu:") or not 1 <= int(given) <= MOST_CPUS:
        raise UserError(
            f"--topology={text} must be cpu:N, N fake CPU devices from 1 to {MOST_CPUS}, such as cpu:8."
        )
    if num_slices != 1:
        raise UserError(
            f"--num-slices={num_slices} is for TPUs: fake CPU devices have no slices. Leave it out, or name a slice "
            "such as --topology=v5e:2x4."
        )
    return Topology(None, (int(given),))


def _check_chip(text: str, chip: str) -> None:
    if chip in DIMS:
        return
    meant = OTHER_NAMES.get(chip.lower()) or nearest(chip.lower(), DIMS)
    known = f"there are {', '.join(DIMS)}, and cpu for fake devices."
    if meant is None and chip in CHIPS:
        raise UserError(f"--topology={text}: {chip} cannot be compiled for without the chip itself; {known}")
    hint = "" if meant is None else f" Did you mean {meant}:{shape_name(_first_choice(meant, text))}?"
    raise UserError(f"--topology={text}: {chip!r} is no TPU; {known}{hint}")


def _first_choice(chip: str, text: str) -> tuple[int, ...]:
    """The shape of a chip that is most like the one that was written behind another name."""
    numbers = [
        int(number) for number in re.findall(r"\d{1,5}", text.partition(":")[2] or text.partition("-")[2])
    ]
    return _near(chip, math.prod(numbers) if numbers else 8)[0]


def _shape(chip: str, text: str, given: str) -> tuple[int, ...]:
    """The shape as it is listed; of 2x2 and 2x2x1 the one with as many dimensions as the chip's network."""
    what = f"--topology={text}"
    if not text.startswith(f"{chip}:") or not _SHAPE.fullmatch(given) or "x" not in given:
        raise UserError(f"{what} must be {chip}:SHAPE, {_choices(chip, given)}")
    dims = [int(dim) for dim in given.split("x")]
    while len(dims) > DIMS[chip] and dims[-1] == 1:
        dims.pop()
    shape = (*dims, *[1] * (DIMS[chip] - len(dims)))
    if shape in shapes(chip):
        return shape
    raise UserError(f"{what}: there is no such slice of {chip}; {_choices(chip, given)}")


def _near(chip: str, num_chips: int) -> list[tuple[int, ...]]:
    """Up to three shapes with about so many chips, the nearest first."""
    found = sorted(usual_shapes(chip), key=lambda shape: abs(math.log(math.prod(shape) / max(num_chips, 1))))
    return found[:3]


def _choices(chip: str, given: str) -> str:
    """The valid choices that are nearest to what was given: a shape, a number of chips, or nothing."""
    numbers = [int(number) for number in re.findall(r"\d{1,5}", given)]
    if not numbers:
        listed = ", ".join(f"{chip}:{shape_name(shape)}" for shape in usual_shapes(chip))
        return f"one of {listed}."
    wanted = math.prod(numbers)
    if len(numbers) == 1:  # the names of Google Cloud count TensorCores where a chip has two
        wanted //= CHIPS[chip].num_cores
    found = _near(chip, wanted)
    same = [shape for shape in shapes(chip) if sorted(shape) == sorted(numbers)]
    found = [*same, *(shape for shape in found if shape not in same)][:3]
    listed = (f"{chip}:{shape_name(shape)} ({_num_chips(shape)})" for shape in found)
    said = f"nearest: {', '.join(listed)}."
    if len(numbers) == 1 and CHIPS[chip].num_cores == 2:
        said += f" {chip}-{numbers[0]} counts TensorCores, two a chip."
    return said


def _num_chips(shape: tuple[int, ...]) -> str:
    return "1 chip" if math.prod(shape) == 1 else f"{math.prod(shape):,} chips"
