"""On which chips a run fits, how long it takes there, and what that costs."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.models.config import REMATS
from jaxlm.plan import cost, placement
from jaxlm.plan.hardware import Chip, Slices, chip_named, product_flops_per_s
from jaxlm.plan.memory import MemoryEstimate, resolve_mesh
from jaxlm.plan.placement import Placement
from jaxlm.plan.prices import RULE, Price, choose, given, matching, warning
from jaxlm.plan.report import Table, count, days, dollars, gigabytes, percent
from jaxlm.plan.step_time import StepEstimate, mfu_range, predict_step
from jaxlm.plan.topology import DIMS, usual_shapes
from jaxlm.types import UserError

DEFAULT_CHIPS = ("v5e", "v5p", "v6e", "tpu7x", "v4", "a100-80gb", "h100", "h200", "b200")
UNKNOWN_MFUS = (0.3, 0.5)
"""Of chips whose steps are not predicted."""

MOST_CHIPS = 2**14
"""Where the search for a slice ends for chips that come in any number."""


class RunPlan(NamedTuple):
    """What is asked of a plan."""

    chips: Sequence[str]
    num_chips: int | None
    """Of each kind; None: the smallest slice on which the run fits."""
    mfus: tuple[float, float] | None
    """(low, high) in place of the predicted ones."""
    attention_flops: str
    prices: Sequence[Price]
    price_usd: float | None
    """Per chip-hour, in place of a price of the table."""
    commitment: str
    provider: str | None
    pue: float
    within_days: float
    """How long it may take: for the number of chips that it then needs."""
    today: datetime.date


class Slice(NamedTuple):
    """What a run takes on one kind of chip."""

    place: Placement
    price: Price | None
    low: cost.Estimate
    """At the lower MFU; without a price its dollars mean nothing."""
    high: cost.Estimate
    mfus: tuple[float, float]
    """(low, high): those that were asked for, else predicted, else `UNKNOWN_MFUS`."""
    step: StepEstimate | None
    """None where steps are not predicted: on GPUs."""


def find_slices(run: Any, total_flops: float, wanted: RunPlan) -> tuple[list[Slice], list[str]]:
    """(one slice for each chip, why others have none); total_flops: of all the training."""
    slices, without = [], []
    for name in wanted.chips:
        chip = chip_named(name)
        if (peak := product_flops_per_s(chip, run.model.dtype)) is None:
            without.append(f"{name} is left out: its units do not multiply model.dtype={run.model.dtype}.")
            continue
        place = placement_on(run, chip, wanted.num_chips)
        if place is None:
            what = "any slice of it" if wanted.num_chips is None else f"{wanted.num_chips:,} of them"
            without.append(
                f"{name} is left out: the run does not fit on {what}, or no mesh divides model and batch. Try a larger "
                "data.global_batch_size, or model.remat='full'."
            )
            continue
        price = price_of(chip, wanted)
        step = predicted(run, place)
        flops = total_flops / run.train.num_steps
        mfus = wanted.mfus or (
            UNKNOWN_MFUS if step is None else mfu_range(step, flops, peak * place.num_chips)
        )
        low, high = (
            cost.estimate(
                chip,
                total_flops / (peak * mfu) / 3600,
                price.usd if price else 0.0,
                num_chips=place.num_chips,
                extras=cost.Extras(pue=wanted.pue),
            )
            for mfu in mfus
        )
        slices.append(Slice(place, price, low, high, mfus, step))
    return slices, without


def predicted(run: Any, place: Placement) -> StepEstimate | None:
    """The step where it lies; None on chips that are no TPUs."""
    shapes = usual_shapes(place.chip.name) if place.chip.name in DIMS else ()
    shape = next((shape for shape in shapes if math.prod(shape) == place.num_chips), None)
    if shape is None:
        return None
    train = dataclasses.replace(run.train, num_microbatches=place.num_microbatches)
    return predict_step(dataclasses.replace(run, train=train), place.chip, place.mesh, shape)


def placement_on(run: Any, chip: Chip, num_chips: int | None) -> Placement | None:
    """The smallest slice that the run fits on; or how it lies on num_chips, whether it fits or not."""
    if num_chips is None:
        return placement.smallest(run, chip, sizes_of(chip.slices))
    if not chip.slices.has(num_chips):
        near = [n for n in sizes_of(chip.slices) if n <= 2 * num_chips]
        raise UserError(
            f"--num-chips={num_chips:,} is no slice of {chip.name}: there are {', '.join(map(str, near[-4:]))}, ..."
        )
    if run.mesh != type(run.mesh)():  # a mesh that was asked for is kept to, or refused
        resolve_mesh(run.mesh.sizes, num_chips * chip.devices_per_chip)
    return placement.best(run, chip, num_chips)


def sizes_of(slices: Slices) -> Iterator[int]:
    """Sizes of slices worth trying, ascending: all that are listed, beyond them powers of two."""
    yield from slices.counts
    num = slices.counts[-1] * 2
    while slices.step is not None and num <= MOST_CHIPS:
        yield num
        num *= 2


def price_of(chip: Chip, wanted: RunPlan) -> Price | None:
    """What a chip-hour costs; None where the tables have no price of that kind."""
    if wanted.price_usd is not None:
        return given(chip.name, wanted.price_usd)
    found = matching(wanted.prices, chip.name, commitment=wanted.commitment, provider=wanted.provider)
    if not found and len(wanted.chips) > 1:
        return None
    return choose(wanted.prices, chip.name, commitment=wanted.commitment, provider=wanted.provider)


def slices_table(slices: Sequence[Slice], wanted: RunPlan) -> Table:
    """Where it fits."""
    rows = []
    for one in slices:
        place = one.place
        rows.append((
            place.chip.name,
            f"{place.num_chips:,}",
            mesh_name(place.mesh),
            f"{place.num_microbatches:,}",
            gigabytes(place.memory.total),
            percent(place.memory.total / place.limit_bytes, 0),
            chips_within(one, wanted.within_days),
        ))  # fmt: skip
    title = "the smallest slice of each chip that it fits on" if wanted.num_chips is None else "where it fits"
    notes = [
        "Microbatches: as many as the config has, or as make it fit; they change no result. "
        f"{percent(placement.MARGIN, 0)} of the memory are kept free. Last column: chips to be done in "
        f"{wanted.within_days:g} days at the lower MFU.",
    ]
    if any(placement.platform_of(one.place.chip) == "gpu" for one in slices):
        notes.append(
            "Memory of GPUs is estimated as that of TPUs is, and was not compared with their compiler."
        )
    columns = (
        "chip",
        "chips",
        "mesh",
        "microbatches",
        "a device",
        "of it",
        f"in {wanted.within_days:g} days",
    )
    return Table(title, columns, rows, notes=notes, left=("mesh",))


def chips_within(one: Slice, num_days: float) -> str:
    """The slice, or several of the largest, that is done in so many days at the lower MFU."""
    needed = math.ceil(one.low.chip_hours / 24 / num_days)
    slices = one.place.chip.slices
    found = slices.at_least(max(needed, one.place.num_chips))
    return f"{found:,}" if found is not None else f"{-(-needed // slices.counts[-1])} x {slices.counts[-1]:,}"


def cost_table(slices: Sequence[Slice], wanted: RunPlan) -> Table:
    """Days, energy and money."""
    rows = []
    for one in slices:
        energy = [estimate.energy_mwh for estimate in (one.high, one.low)]
        usd = (dollars(one.high.compute_usd), dollars(one.low.compute_usd))
        rows.append((
            one.place.chip.name,
            f"{one.place.num_chips:,}",
            between(days(one.high.days or 0), days(one.low.days or 0)),
            between(count(one.high.chip_hours), count(one.low.chip_hours)),
            "-" if None in energy else between(*(f"{mwh:,.3g}" for mwh in energy if mwh is not None)),
            "-" if one.price is None else between(*usd),
        ))  # fmt: skip
    said = "that is predicted of each, above; --mfu=low,high gives others"
    if wanted.mfus is not None:
        said = "of " + " to ".join(percent(mfu, 0) for mfu in reversed(wanted.mfus))
    elif unknown := [one.place.chip.name for one in slices if one.step is None]:
        low, high = UNKNOWN_MFUS
        said += f"; of {', '.join(unknown)}, whose steps are not predicted, {percent(high, 0)} to {percent(low, 0)}"
    pue = f", times a PUE of {wanted.pue:g}" if wanted.pue != 1 else ""
    notes = [
        f"At an MFU {said}; of the chip's dense peak. MWh: of the chips{pue}; - where their power"
        " is not public. Dollars: of these chip-hours alone; `jaxlm plan cost` adds the rest."
    ]
    columns = ("chip", "chips", "time", "chip-hours", "MWh", "compute")
    return Table("time, energy and money: estimates", columns, rows, notes=notes)


def prices_table(slices: Sequence[Slice]) -> Table:
    """Which prices were taken."""
    rows = [
        (
            p.chip,
            f"${p.usd:,.2f}",
            p.provider,
            p.region,
            p.commitment,
            p.when if p.provider != "given" else "-",
        )
        for one in slices
        if (p := one.price) is not None
    ]
    columns = ("chip", "chip-hour", "provider", "region", "commitment", "date")
    return Table("prices", columns, rows, notes=[RULE + " --json has the address of each."], left=columns[2:])


def stale(slices: Sequence[Slice], today: datetime.date) -> list[str]:
    """One warning for all prices that may be out of date."""
    old = [one.price for one in slices if one.price is not None and warning(one.price, today)]
    if not old:
        return []
    return [
        f"the prices of {', '.join(price.chip for price in old)} are over 12 months old, or from a list without a "
        "date: check them, or give today's with --price=USD or --prices=FILE."
    ]


def between(one: str, other: str) -> str:
    """one to other, with the unit once."""
    if one == other:
        return one
    (first, _, unit), (second, _, other_unit) = one.partition(" "), other.partition(" ")
    return f"{first}-{second} {unit}" if unit == other_unit and unit else f"{one}-{other}"


def too_large(slices: Sequence[Slice]) -> list[str]:
    """Of chips whose number was given: those on which it does not fit."""
    return [
        f"it does not fit on {one.place.num_chips:,} x {one.place.chip.name}: {gigabytes(one.place.memory.total)} a "
        f"device at best, of {gigabytes(one.place.limit_bytes)}. Try more chips, model.remat='full' or a smaller batch."
        for one in slices
        if not one.place.fits
    ]


def memory_table(run: Any, on: Placement) -> Table:
    """Bytes on a device by part, for every remat policy."""
    estimates: dict[str, MemoryEstimate] = {}
    remats = {name: name for name in REMATS} | (
        {} if run.model.remat in REMATS else {run.model.remat: "config"}
    )
    for remat in remats:
        other = dataclasses.replace(run, model=dataclasses.replace(run.model, remat=remat))
        at = placement.place(other, on.chip, on.num_chips, on.mesh, on.num_microbatches)
        estimates[remat] = at.memory
    names = [f"{name} *" if remat == run.model.remat else name for remat, name in remats.items()]
    rows = [
        (part, *(gigabytes(getattr(estimates[remat], part)) for remat in remats))
        for part in MemoryEstimate._fields
    ]
    limit = on.limit_bytes
    rows.append(("total", *(gigabytes(estimates[remat].total) for remat in remats)))
    rows.append(("of the memory", *(percent(estimates[remat].total / limit, 0) for remat in remats)))
    where = f"{on.num_chips:,} x {on.chip.name}, {mesh_name(on.mesh)}"
    title = f"memory of a device by remat policy: {where}"
    notes = [
        f"{on.num_microbatches} microbatch(es); a program may take {gigabytes(limit)} of a device. * is "
        "model.remat of the config. Parts are those of the moment where most is alive.",
    ]
    return Table(title, ("part", *names), rows, notes=notes)


def mesh_name(mesh: Mapping[str, int]) -> str:
    """The axes that have more than one device: fsdp 64 x tensor 4."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"


def slice_numbers(one: Slice) -> dict[str, Any]:
    """For --json; the dollars are None where there is no price."""
    place = one.place
    return {
        "chip": place.chip.name,
        "num_chips": place.num_chips,
        "num_devices": place.num_devices,
        "mesh": dict(place.mesh),
        "num_microbatches": place.num_microbatches,
        "bytes_per_device": place.memory._asdict() | {"total": place.memory.total},
        "limit_bytes": place.limit_bytes,
        "fits": place.fits,
        "price": None if one.price is None else dataclasses.asdict(one.price),
        "mfu": {"low": one.mfus[0], "high": one.mfus[1]},
        "step": None
        if one.step is None
        else {**one.step._asdict(), "step_s": one.step.step_s, "bound": one.step.bound},
        **{
            name: {
                "chip_hours": estimate.chip_hours,
                "days": estimate.days,
                "compute_usd": None if one.price is None else estimate.compute_usd,
                "energy_mwh": estimate.energy_mwh,
            }
            for name, estimate in (("at_low_mfu", one.low), ("at_high_mfu", one.high))
        },
    }
