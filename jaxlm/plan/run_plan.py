"""The plan of one run: parameters, FLOPs, memory, slices, days and money, from its config alone."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.config import check_choice
from jaxlm.models.config import REMATS
from jaxlm.plan import cost, placement
from jaxlm.plan.flops import FlopsPerToken, ParamCount, count_params, flops_per_token, training_flops, weights
from jaxlm.plan.hardware import PRODUCTS, Chip, Slices, chip_named
from jaxlm.plan.memory import MemoryEstimate
from jaxlm.plan.placement import Placement
from jaxlm.plan.prices import COMMITMENTS, RULE, Price, choose, given, warning
from jaxlm.plan.report import Report, Table, count, days, dollars, flops, gigabytes, percent
from jaxlm.plan.tuning import trained_weights, tuned_flops_per_token
from jaxlm.types import UserError

DEFAULT_CHIPS = ("v5e", "v5p", "v6e", "tpu7x", "v4", "a100-80gb", "h100", "h200", "b200")
MOST_CHIPS = 2**14
"""Where the search for a slice ends for chips that come in any number."""

ATTENTION_FLOPS = {
    "half": "what causal attention needs; MaxText since its PR 1988",
    "whole": "the whole table of every row; PaLM, MaxText before that",
    "none": "6 N D: none",
}
"""How FLOPs of attention are counted: name -> what that is."""

FEW_TOKENS, OPTIMAL_TOKENS, MANY_TOKENS = 10, 20, 100
"""Tokens per parameter: below and above which a plan is called unusual, and what is compute-optimal (Hoffmann et al.
2022, arXiv:2203.15556, table 3: 20 to 25 for the sizes they trained)."""

CRITICAL_TOKENS, CRITICAL_EXPONENT = 2e8, 0.21
"""Critical batch in tokens: 2e8 / L^(1 / 0.21) at a loss of L nats (Kaplan et al. 2020, arXiv:2001.08361, eq. 5.3)."""

CHINCHILLA = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
"""Loss = E + A / N^alpha + B / D^beta, as Besiroglu et al. 2024 refitted it (arXiv:2404.10102, table 1)."""


class RunPlan(NamedTuple):
    """What is asked of a plan."""

    chips: Sequence[str]
    num_chips: int | None
    """Of each kind; None: the smallest slice on which the run fits."""
    mfus: tuple[float, float]
    """(low, high)"""
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


class Budget(NamedTuple):
    """What a run computes."""

    params: ParamCount
    num_trained: int
    """Of all parameters, or adapters beside them, those with gradients."""
    tokens_per_step: int
    num_steps: int
    per_token: FlopsPerToken
    """By the convention that was asked for; nothing for attention under `none`."""

    @property
    def tokens(self) -> int:
        return self.tokens_per_step * self.num_steps

    @property
    def flops(self) -> float:
        return self.per_token.total * self.tokens


def budget(run: Any, attention_flops: str = "half") -> Budget:
    """Counts a run. `run`: a RunConfig whose model.vocab_size is set; attention_flops: of `ATTENTION_FLOPS`."""
    T = run.data.seq_len
    per_token = tuned_flops_per_token(run.model, T, run.tune, causal_halved=attention_flops != "whole")
    if attention_flops == "none":
        per_token = per_token._replace(attention=0.0)
    return Budget(
        params=count_params(run.model, T),
        num_trained=sum(w.num_params for w in trained_weights(weights(run.model, T), run.tune)),
        tokens_per_step=run.data.global_batch_size * T,
        num_steps=run.train.num_steps,
        per_token=per_token,
    )


def parameters_table(found: Budget) -> Table:
    """Parameters by part."""
    total, shown = found.params.total, found.params._asdict()
    shown = {name.replace("_", " "): num for name, num in shown.items() if num}
    rows = [(name, f"{num:,}", percent(num / total)) for name, num in shown.items()]
    rows.append(("total", f"{total:,}", percent(1.0)))
    if found.params.idle_experts:
        rows.append(("a token meets", f"{found.params.active:,}", percent(found.params.active / total)))
    if found.num_trained != total:
        rows.append(("trained", f"{found.num_trained:,}", percent(found.num_trained / total)))
    return Table("parameters", ("part", "number", "share"), rows)


def training_table(run: Any, found: Budget, attention_flops: str) -> Table:
    """Tokens and FLOPs, and what they would be called elsewhere."""
    N, D, per_token = found.params.active, found.tokens, found.per_token
    share = percent(per_token.attention / per_token.total)
    rows = [
        ("tokens a step", f"{run.data.global_batch_size:,} x {run.data.seq_len:,} = {found.tokens_per_step:,}"),
        ("steps", f"{found.num_steps:,}"),
        ("tokens", f"{count(D)} ({D / found.params.total:,.1f} a parameter)"),
        ("FLOPs a token", f"{flops(per_token.total)} ({share} of them attention)"),
        ("FLOPs", flops(found.flops)),
    ]  # fmt: skip
    if run.tune.train == "all":
        rows.append(("6 N D", flops(training_flops(N, D))))
        for name in ("half", "whole"):
            if name != attention_flops:
                other = flops_per_token(run.model, run.data.seq_len, causal_halved=name != "whole").total * D
                rows.append((f"with --attention-flops={name}", flops(other)))
    note = f"FLOPs a token: {found.per_token.formula}."
    if attention_flops == "none":
        note = "FLOPs a token: of products with weights alone; attention is left out."
    return Table("training", ("", "value"), rows, notes=(note,))


class Slice(NamedTuple):
    """What a run takes on one kind of chip."""

    place: Placement
    price: Price | None
    low: cost.Estimate
    """At the lower MFU; without a price its dollars mean nothing."""
    high: cost.Estimate


def plan_run(run: Any, name: str, wanted: RunPlan) -> Report:
    """All that can be said of a run before it starts.

    Args:
      run: a RunConfig with model.vocab_size (and num_classes, where it classifies) filled in.
      name: what the user calls it.

    Errors: UserError for a chip, price or convention that does not exist.
    """
    check_choice("--attention-flops", wanted.attention_flops, ATTENTION_FLOPS)
    check_choice("--commitment", wanted.commitment, COMMITMENTS)
    if wanted.provider is not None:
        check_choice("--provider", wanted.provider, sorted({price.provider for price in wanted.prices}))
    found = budget(run, wanted.attention_flops)
    slices, without = find_slices(run, found, wanted)
    tables = [parameters_table(found), training_table(run, found, wanted.attention_flops)]
    if slices:
        tables += [
            memory_table(run, slices[0].place),
            slices_table(slices, wanted),
            cost_table(slices, wanted),
            prices_table(slices),
        ]
    return Report(
        title=f"plan of {name}: {run.model.num_layers} layers, {count(found.params.total)} parameters, "
        f"{count(found.tokens)} tokens",
        tables=tables,
        warnings=[*unusual(run, found), *without, *too_large(slices), *stale(slices, wanted.today)],
        data=numbers(found) | {"slices": [slice_numbers(one) for one in slices]},
    )


def find_slices(run: Any, found: Budget, wanted: RunPlan) -> tuple[list[Slice], list[str]]:
    """(one slice for each chip, why others have none)."""
    slices, without = [], []
    for name in wanted.chips:
        chip = chip_named(name)
        if (peak := peak_flops_per_s(chip, run.model.dtype)) is None:
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
        estimates = [
            cost.estimate(
                chip,
                found.flops / (peak * mfu) / 3600,
                price.usd if price else 0.0,
                num_chips=place.num_chips,
                extras=cost.Extras(pue=wanted.pue),
            )
            for mfu in wanted.mfus
        ]
        slices.append(Slice(place, price, *estimates))
    return slices, without


def peak_flops_per_s(chip: Chip, dtype: str) -> float | None:
    """Of one chip, for the products that JAX computes for a model of this dtype; None where it has no such units."""
    peaks = (
        chip.peak_flops_per_s[name] for name in PRODUCTS.get(dtype, (dtype,)) if name in chip.peak_flops_per_s
    )
    first = next(peaks, None)
    return None if first is None else first.value


def placement_on(run: Any, chip: Chip, num_chips: int | None) -> Placement | None:
    """The smallest slice that the run fits on; or how it lies on num_chips, whether it fits or not."""
    if num_chips is None:
        return placement.smallest(run, chip, sizes_of(chip.slices))
    if not chip.slices.has(num_chips):
        near = [n for n in sizes_of(chip.slices) if n <= 2 * num_chips]
        raise UserError(
            f"--num-chips={num_chips:,} is no slice of {chip.name}: there are {', '.join(map(str, near[-4:]))}, ..."
        )
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
    known = {price.chip for price in wanted.prices if price.commitment == wanted.commitment}
    if wanted.provider is not None:
        known = {
            p.chip
            for p in wanted.prices
            if (p.commitment, p.provider) == (wanted.commitment, wanted.provider)
        }
    if chip.name not in known and len(wanted.chips) > 1:
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
    low, high = wanted.mfus
    pue = f", times a PUE of {wanted.pue:g}" if wanted.pue != 1 else ""
    notes = [
        f"At an MFU of {percent(high, 0)} to {percent(low, 0)} of the chip's dense peak. MWh: of the chips{pue}; - "
        "where their power is not public. Dollars: of these chip-hours alone; `jaxlm plan cost` adds the rest."
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
    for remat in REMATS:
        other = dataclasses.replace(run, model=dataclasses.replace(run.model, remat=remat))
        at = placement.place(other, on.chip, on.num_chips, on.mesh, on.num_microbatches)
        estimates[remat] = at.memory
    names = [f"{remat} *" if remat == run.model.remat else remat for remat in REMATS]
    rows = [
        (part, *(gigabytes(getattr(estimates[remat], part)) for remat in REMATS))
        for part in MemoryEstimate._fields
    ]
    limit = on.limit_bytes
    rows.append(("total", *(gigabytes(estimates[remat].total) for remat in REMATS)))
    rows.append(("of the memory", *(percent(estimates[remat].total / limit, 0) for remat in REMATS)))
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


def predicted_loss(num_params: float, num_tokens: float) -> float:
    """Nats per token that the refitted Chinchilla law says; of their data and tokenizer."""
    law = CHINCHILLA
    return law["E"] + law["A"] / num_params ** law["alpha"] + law["B"] / num_tokens ** law["beta"]


def unusual(run: Any, found: Budget) -> list[str]:
    """What of a pretraining stands out, each with the paper that says so."""
    if run.objective != "pretrain":
        return []
    said, N, D = [], found.params.total, found.tokens
    ratio = D / N
    if ratio < FEW_TOKENS:
        said.append(
            f"{ratio:.1f} tokens a parameter: a smaller model on more tokens reaches a lower loss for these FLOPs; "
            f"about {OPTIMAL_TOKENS} are compute-optimal (Hoffmann et al. 2022, arXiv:2203.15556)."
        )
    if ratio > MANY_TOKENS:
        said.append(
            f"{ratio:,.0f} tokens a parameter: a larger model reaches a lower loss for these FLOPs, about "
            f"{OPTIMAL_TOKENS} being compute-optimal (Hoffmann et al. 2022, arXiv:2203.15556); it pays where the model "
            "is used a lot (Sardana et al. 2023, arXiv:2401.00448)."
        )
    loss = predicted_loss(N, D)
    critical = CRITICAL_TOKENS / loss ** (1 / CRITICAL_EXPONENT)
    if found.tokens_per_step > critical:
        said.append(
            f"a batch of {count(found.tokens_per_step)} tokens is beyond the critical size, about {count(critical)} at "
            f"a loss of {loss:.2f}: more of it saves hardly any steps (Kaplan et al. 2020, arXiv:2001.08361, eq. 5.3)."
        )
    return said


def numbers(found: Budget) -> dict[str, Any]:
    """For --json."""
    return {
        "parameters": found.params._asdict()
        | {"total": found.params.total, "active": found.params.active, "trained": found.num_trained},
        "tokens_per_step": found.tokens_per_step,
        "num_steps": found.num_steps,
        "tokens": found.tokens,
        "flops_per_token": found.per_token._asdict(),
        "flops": found.flops,
    }


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
