"""A compiled train step in numbers: what it takes of a device, how long it may take, and what the run then costs."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.plan import cost, prices
from jaxlm.plan.hardware import Chip, product_flops_per_s
from jaxlm.plan.prices import Price
from jaxlm.plan.run_plan import Budget, numbers
from jaxlm.plan.step_cost import StepCost, StepTime
from jaxlm.plan.step_products import products
from jaxlm.plan.topology import Topology
from jaxlm.plan.what_fits import Change

MEASURED = {"roofline": (1.07, 1.71), "hybrid": (0.91, 1.35), "cycles": (0.88, 1.07)}
"""Step times that MaxText publishes for five recipes on v5e, v5p and v6e, over what each estimate says of their steps
when compiled with jax 0.11.1 and libtpu 0.0.46: lowest, highest."""


class DeviceMemory(NamedTuple):
    """What a compiled step takes of one device, in bytes."""

    total_bytes: int
    """What has to fit: arguments, outputs and temporaries, as they lie in memory."""
    argument_bytes: int
    """State and batch."""
    output_bytes: int = 0
    """Those that do not take the place of an argument."""
    host_bytes: int = 0
    """Offloaded to the host."""
    program_bytes: int = 0
    is_reported: bool = True
    """Whether the total is that of the compiler's report, not a sum."""
    refused: str | None = None
    """Why the compiler made no program of it."""

    @property
    def temporary_bytes(self) -> int:
        return self.total_bytes - self.argument_bytes - self.output_bytes


class Pricing(NamedTuple):
    """Which price of a chip-hour is taken."""

    prices: Sequence[Price]
    price_usd: float | None
    """In place of a price of the table."""
    commitment: str
    provider: str | None
    today: datetime.date

    def of(self, chip: Chip) -> Price | None:
        """None where there is no price of that kind. Errors: UserError for a commitment or provider that is none."""
        prices.check_choices(self.prices, self.commitment, self.provider)
        if self.price_usd is not None:
            return prices.given(chip.name, self.price_usd)
        kind: Any = {"commitment": self.commitment, "provider": self.provider}
        return next(iter(prices.matching(self.prices, chip.name, **kind)), None)


class Facts(NamedTuple):
    """What was compiled, and what came of it."""

    name: str
    """What the user calls the config."""
    on: Topology
    mesh: dict[str, int]
    kernels: dict[str, str]
    memory: DeviceMemory
    argument_parts_bytes: dict[str, int]
    step: StepCost | None
    """None where there is no program."""
    time: StepTime | None
    """None for CPU devices too."""
    seconds: dict[str, float]
    """import, lower, compile."""
    versions: dict[str, str]
    stablehlo_sha256: str


class Speed(NamedTuple):
    """One estimate of a step's time, and what follows from it."""

    basis: str
    predicted_s: float
    low_s: float
    high_s: float
    """Between which steps were measured that were predicted alike."""
    tokens_per_s_per_chip: float
    mfu: float | None
    """None where the chip has no units for the model's dtype."""


def model_flops(facts: Facts, found: Budget) -> float:
    """Of one device and step."""
    return found.per_token.total * found.tokens_per_step / facts.on.num_devices


def planned_flops(run: Any, facts: Facts) -> float | None:
    """Of one device and step, as `jaxlm plan` counts them: the model's, what `model.remat` repeats, blocks of attention
    that no query sees. None for other devices than TPUs, whose attention cuts its table in another way."""
    return None if facts.on.chip is None else products(run, facts.mesh).flops


def speeds_of(run: Any, facts: Facts, found: Budget) -> list[Speed]:
    """All estimates that there are, the most trusted one last."""
    time, chip = facts.time, facts.on.chip
    assert time is not None
    assert chip is not None
    peak = product_flops_per_s(chip, run.model.dtype)
    out = []
    for basis, seconds in (
        ("roofline", time.roofline_s),
        ("hybrid", time.hybrid_s),
        ("cycles", time.cycles_s),
    ):
        if seconds:
            low, high = MEASURED[basis]
            mfu = peak and model_flops(facts, found) / (seconds * peak * chip.share())
            tokens = found.tokens_per_step / seconds / facts.on.num_chips
            out.append(Speed(basis, seconds, low * seconds, high * seconds, tokens, mfu))
    return out


def estimates(
    facts: Facts, found: Budget, chip: Chip, speed: Speed, price: Price | None
) -> list[cost.Estimate]:
    """Of the whole run, at the fast and the slow end of what is expected; without a price its dollars mean nothing."""
    return [
        cost.estimate(
            chip,
            found.num_steps * seconds / 3600 * facts.on.num_chips,
            price.usd if price else 0.0,
            num_chips=facts.on.num_chips,
        )
        for seconds in (speed.low_s, speed.high_s)
    ]


def facts_data(
    facts: Facts,
    found: Budget,
    predicted_bytes: int,
    limit: float | None,
    better: Sequence[Change],
    speeds: Sequence[Speed],
    price: Price | None,
    planned: float | None,
) -> dict[str, Any]:
    """For --json."""
    memory, step, on = facts.memory, facts.step, facts.on
    out: dict[str, Any] = {
        "config": facts.name,
        "topology": {
            "name": on.slice_name,
            "num_slices": on.num_slices,
            "num_chips": on.num_chips,
            "num_devices": on.num_devices,
            "num_hosts": on.num_hosts,
        },
        "mesh": dict(facts.mesh),
        "kernels": dict(facts.kernels),
        "seconds": dict(facts.seconds),
        "versions": dict(facts.versions),
        "stablehlo_sha256": facts.stablehlo_sha256,
        **numbers(found),
        "memory": {
            **memory._asdict(),
            "temporary_bytes": memory.temporary_bytes,
            "argument_parts_bytes": dict(facts.argument_parts_bytes),
            "limit_bytes": limit,
            "fits": None if limit is None else memory.total_bytes <= limit,
            "predicted_bytes": predicted_bytes,
            "changes": [one._asdict() for one in better],
        },
        "step": None,
        "time": None if facts.time is None else facts.time._asdict(),
        "speeds": [one._asdict() for one in speeds],
        "run": None,
    }
    if step is not None:
        model = model_flops(facts, found)
        out["step"] = {
            **step._asdict(),
            "links": step.links._asdict(),
            "as_written": step.as_written._asdict(),
            "collectives": [row._asdict() for row in step.collectives],
            "loops": [loop._asdict() for loop in step.loops],
            "model_flops": model,
            "planned_flops": planned,
            "executed_share": step.flops / model,
        }
    if speeds and on.chip is not None:
        ends = estimates(facts, found, on.chip, speeds[-1], price)
        out["run"] = {
            "price": None if price is None else {**vars(price)},
            **{
                name: {
                    "chip_hours": one.chip_hours,
                    "days": one.days,
                    "compute_usd": None if price is None else one.compute_usd,
                }
                for name, one in zip(("fast", "slow"), ends, strict=True)
            },
        }
    return out
