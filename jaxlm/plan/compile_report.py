"""What `jaxlm compile` says of a train step: memory, FLOPs, collectives, seconds and money, from numbers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jaxlm.plan import prices
from jaxlm.plan.compiled import (
    MEASURED,
    Facts,
    Pricing,
    Speed,
    estimates,
    facts_data,
    model_flops,
    planned_flops,
    speeds_of,
)
from jaxlm.plan.hardware import Chip
from jaxlm.plan.memory import predict
from jaxlm.plan.placement import limit_bytes
from jaxlm.plan.prices import Price
from jaxlm.plan.report import Report, Table, count, days, dollars, flops, percent
from jaxlm.plan.report import gigabytes as gigabytes_of
from jaxlm.plan.run_plan import Budget, budget
from jaxlm.plan.slices import between, mesh_name
from jaxlm.plan.step_cost import StepCost, StepTime
from jaxlm.plan.what_fits import Change, changes

BOUNDS = {"compute": "matrix units", "memory": "bandwidth of HBM", "network": "network between chips"}
"""`StepTime.bound` in words."""


def compile_report(run: Any, facts: Facts, pricing: Pricing, notes: Sequence[str] = ()) -> Report:
    """Tables and numbers of a compiled step.

    Args:
      run: a RunConfig with model.vocab_size, and num_classes of a classifier, filled in.
      notes: what was assumed of the run.
    """
    found, memory, chip = budget(run), facts.memory, facts.on.chip
    predicted = predict(run, facts.mesh, facts.on.num_devices, platform=facts.on.platform)
    limit = None if chip is None else limit_bytes(chip)
    better: list[Change] = []
    if limit is not None and memory.total_bytes > limit:
        better = changes(run, facts.mesh, facts.on, memory.total_bytes)
    speeds = [] if facts.time is None else speeds_of(run, facts, found)
    tables = [step_table(run, facts, found), memory_table(facts, predicted.total, limit)]
    if limit is not None and memory.total_bytes > limit:
        tables.append(changes_table(better, limit))
    planned = planned_flops(run, facts)
    if facts.step is not None:
        tables += [flops_table(facts, found, facts.step, planned), collectives_table(facts, facts.step)]
    price = None
    if speeds and chip is not None and facts.time is not None:
        price = pricing.of(chip)
        tables += [speed_table(facts.time, speeds), money_table(facts, found, chip, speeds[-1], price)]
    warnings = [] if limit is None or memory.total_bytes <= limit else [too_large(facts, limit)]
    if facts.step is not None:
        warnings += [f"the compiled program was not read whole: {one}." for one in facts.step.unknown]
        warnings += recomputed(run, facts.step, planned)
    warnings += prices.warnings([price] if price else [], pricing.today)
    return Report(
        title=f"compile of {facts.name} for {facts.on.name}: {count(found.params.total)} parameters, "
        f"{mesh_name(facts.mesh)}",
        tables=tables,
        warnings=warnings,
        notes=[*notes, *caveats(facts)],
        data=facts_data(facts, found, predicted.total, limit, better, speeds, price, planned),
    )


def gigabytes(num_bytes: float) -> str:
    """As everywhere; of small models in MB."""
    return gigabytes_of(num_bytes) if abs(num_bytes) >= 1e8 else f"{num_bytes / 1e6:,.2f} MB"


def step_table(run: Any, facts: Facts, found: Budget) -> Table:
    """What was compiled."""
    rows_each = run.data.global_batch_size // (found_rows(facts.mesh) * run.train.num_microbatches)
    B, T, num_parts = run.data.global_batch_size, run.data.seq_len, run.train.num_microbatches
    kernels = [f"{what} {name}" for what, name in facts.kernels.items()]
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in facts.seconds.items())
    devices = f"{facts.on.num_devices:,} devices on {facts.on.num_hosts:,} host(s)"
    if facts.on.chip is not None:
        devices = f"{facts.on.num_chips:,} chips, {devices}"
    rows = [
        ("devices", devices),
        ("mesh", mesh_name(facts.mesh)),
        ("parameters", f"{found.params.total:,}"),
        ("batch", f"{B:,} x {T:,} = {found.tokens_per_step:,} tokens a step"),
        ("of a device", f"{rows_each:,} x {T // facts.mesh.get('sequence', 1):,} tokens, {num_parts} time(s) a step"),
        ("model", ", ".join([run.model.dtype, f"remat {run.model.remat}", *kernels])),
        ("took", seconds),
        ("versions", ", ".join(f"{name} {value}" for name, value in facts.versions.items())),
    ]  # fmt: skip
    if found.num_trained != found.params.total:
        rows.insert(3, ("trained", f"{found.num_trained:,} ({run.tune.train})"))
    return Table("the train step", ("", "value"), rows, left=("value",))


def found_rows(mesh: dict[str, int]) -> int:
    """Devices that see different rows of a batch."""
    return mesh["data"] * mesh["fsdp"] * mesh["expert"]


def memory_table(facts: Facts, predicted_bytes: int, limit: float | None) -> Table:
    """What a device holds, against what a program may use of it."""
    memory = facts.memory
    parts = dict(facts.argument_parts_bytes)
    parts["layout, counters"] = memory.argument_bytes - sum(parts.values())
    parts |= {"outputs": memory.output_bytes, "temporaries": memory.temporary_bytes}
    shown = [(name, num) for name, num in parts.items() if num]
    whole = limit or memory.total_bytes
    rows = [(name, gigabytes(num), percent(num / whole)) for name, num in shown]
    rows.append(("total", gigabytes(memory.total_bytes), percent(memory.total_bytes / whole)))
    if limit is not None:
        left = limit - memory.total_bytes
        rows.append(("a program may use", gigabytes(limit), ""))
        said = "fits, left" if left >= 0 else "DOES NOT FIT, too much"
        rows.append((said, gigabytes(abs(left)), percent(abs(left) / limit)))
    if memory.host_bytes:
        rows.append(("on the host", gigabytes(memory.host_bytes), ""))
    off = predicted_bytes / memory.total_bytes - 1
    notes = [f"`jaxlm plan` predicts {gigabytes(predicted_bytes)}, {100 * off:+.1f} %."]
    if not memory.is_reported:
        notes.append("The total is a sum over the compiler's buffers, some of which may share a place.")
    share = "of what it may use" if limit else "share"
    return Table("memory of a device", ("part", "bytes", share), rows, notes=notes)


def too_large(facts: Facts, limit: float) -> str:
    """The warning of a step that does not fit."""
    total = facts.memory.total_bytes
    said = "" if facts.memory.refused is None else f" The compiler: {facts.memory.refused}"
    return (
        f"it does not fit: {gigabytes(total)} of {gigabytes(limit)} that a program may use of a device, "
        f"{gigabytes(total - limit)} ({percent(total / limit - 1)}) too much.{said}"
    )


def changes_table(better: Sequence[Change], limit: float) -> Table:
    """What to change."""
    rows = [
        (one.flags, gigabytes(one.predicted_bytes), percent(one.predicted_bytes / limit)) for one in better
    ]
    notes = [
        "As `jaxlm plan` predicts it; where it takes too little for what was compiled, as much more is allowed for. "
        "Microbatches, remat and mesh change no result."
    ]
    if not better:
        rows = [("no microbatches, remat, mesh or larger slice is predicted to be enough", "-", "-")]
        notes = []
    return Table("what to change: one of these", ("flags to add", "predicted", "of it"), rows, notes=notes)


def recomputed(run: Any, step: StepCost, planned: float | None) -> list[str]:
    """The warning of a program that computes more than it was asked to."""
    if planned is None or step.flops <= 1.01 * planned:
        return []
    return [
        f"the program computes {percent(step.flops / planned - 1)} more than model.remat={run.model.remat!r} asks for: "
        "the compiler does so where what is kept does not fit. Keeping less of a block may be faster."
    ]


def flops_table(facts: Facts, found: Budget, step: StepCost, planned: float | None) -> Table:
    """What a device computes in a step, what of it the model needs, and what it was asked to compute."""
    model = model_flops(facts, found)
    rows = [("model", flops(model), "1.00")]
    if planned is not None:
        rows.append(("with what model.remat repeats", flops(planned), f"{planned / model:.2f}"))
    rows.append(("executed", flops(step.flops), f"{step.flops / model:.2f}"))
    if step.kernel_flops:
        rows.append(("of them in kernels", flops(step.kernel_flops), f"{step.kernel_flops / model:.2f}"))
    notes = [
        f"Model FLOPs a token: {found.per_token.formula}.",
        "Executed: products in the program. What is above the model's is computed again (remat), or for nothing "
        "(the upper half of attention, where no kernel leaves it out).",
    ]
    if step.uncosted:
        named: Counter[str] = Counter()
        for name, times in step.uncosted.items():  # ZeroCrop custom-call.37, ZeroCrop custom-call.38, ...
            named[re.sub(r"\s*custom-call[.\d]*$", "", name) or name] += round(times)
        listed = ", ".join(f"{name} (x {times:,})" for name, times in named.most_common())
        notes.append(f"Not counted, since nobody says what it costs: {listed}.")
    return Table("FLOPs of a device and step", ("", "FLOPs", "of the model's"), rows, notes=notes)


def collectives_table(facts: Facts, step: StepCost) -> Table:
    """What a device sends in a step."""
    rows = [
        (
            row.kind,
            "in a loop" if row.in_loop else "once",
            f"{row.count:,.0f}",
            gigabytes(row.payload_bytes),
            gigabytes(row.wire_bytes),
            percent(row.hidden_wire_bytes / row.wire_bytes, 0) if row.wire_bytes else "-",
            gigabytes(row.across_slices_bytes),
        )
        for row in step.collectives
    ]
    columns = ["kind", "where", "times", "payload", "on the wire", "can hide", "across slices"]
    if facts.on.num_slices == 1:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    if not rows:
        rows = [("none", *("-" for _ in columns[1:]))]
    hint = (
        "On the wire: what the device sends. Can hide: asynchronous, so that products can go on meanwhile; what is "
        "waited for all the same is in the times below."
    )
    if facts.on.chip is None:
        hint = "On the wire: what the device sends. XLA:CPU chooses other collectives than XLA:TPU does."
    return Table("collectives of a device and step", columns, rows, notes=[hint], left=("where",))


def speed_table(time: StepTime, speeds: Sequence[Speed]) -> Table:
    """How long a step takes, by each estimate."""
    rows = [
        (
            one.basis,
            _seconds(one.predicted_s),
            f"{MEASURED[one.basis][0]:.2f}-{MEASURED[one.basis][1]:.2f}",
            between(f"{_seconds(one.low_s)} s", f"{_seconds(one.high_s)} s"),
            count(one.tokens_per_s_per_chip),
            "-" if one.mfu is None else percent(one.mfu),
        )
        for one in speeds
    ]
    parts = (
        ("products", time.compute_s),
        ("HBM", time.hbm_s),
        ("network", time.wire_s),
        ("of it not hidden", time.exposed_wire_s),
    )
    notes = [
        f"Bound by the {BOUNDS[time.bound]}. Roofline, s: "
        + ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in parts)
        + ". A lower bound. Cycles: the compiler's own. Hybrid: products by cycles, the rest by bytes of HBM.",
        "measured: step times that MaxText publishes for five recipes over this estimate of their steps; expected: "
        "the step times that this range means here.",
    ]
    columns = ("estimate", "s a step", "measured", "expected", "tokens/s/chip", "MFU")
    return Table("predicted time of a step", columns, rows, notes=notes)


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _hours(value: float) -> str:
    return f"{value:.3g}" if value < 100 else count(value)


def money_table(facts: Facts, found: Budget, chip: Chip, speed: Speed, price: Price | None) -> Table:
    """What the tokens of the config take."""
    fast, slow = estimates(facts, found, chip, speed, price)
    row = (
        f"{found.num_steps:,}",
        count(found.tokens),
        between(days(fast.days or 0), days(slow.days or 0)),
        between(_hours(fast.chip_hours), _hours(slow.chip_hours)),
        "-" if price is None else between(dollars(fast.compute_usd), dollars(slow.compute_usd)),
    )
    note = (
        f"At the step time that is expected by {speed.basis}, without evaluation, checkpoints and restarts. "
    )
    note += (
        str(price)
        if price
        else f"No price of {chip.name} is known: give one with --price=USD or --prices=FILE."
    )
    return Table("the whole run", ("steps", "tokens", "time", "chip-hours", "compute"), [row], notes=[note])


def caveats(facts: Facts) -> list[str]:
    """What no number here knows of."""
    if facts.on.chip is None:
        return ["Fake CPU devices: bytes and collectives are those of XLA:CPU, and there are no times."]
    said = ["Not in the times: input, the start of each step, latency and contention of the network."]
    if facts.on.num_slices > 1:
        said.append("What goes from slice to slice is counted, and not timed: a step takes longer.")
    return said
