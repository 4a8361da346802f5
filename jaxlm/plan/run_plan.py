"""The plan of one run: parameters, FLOPs, memory, slices, days and money, from its config alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlm.models.config import REMATS
from jaxlm.plan.flops import FlopsPerToken, ParamCount, count_params, flops_per_token, training_flops, weights
from jaxlm.plan.memory import MemoryEstimate
from jaxlm.plan.placement import Placement, place
from jaxlm.plan.report import Table, count, flops, gigabytes, percent
from jaxlm.plan.tuning import trained_weights, tuned_flops_per_token

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


def memory_table(run: Any, placement: Placement) -> Table:
    """Bytes on a device by part, for every remat policy."""
    estimates: dict[str, MemoryEstimate] = {}
    for remat in REMATS:
        other = dataclasses.replace(run, model=dataclasses.replace(run.model, remat=remat))
        at = place(other, placement.chip, placement.num_chips, placement.mesh, placement.num_microbatches)
        estimates[remat] = at.memory
    names = [f"{remat} *" if remat == run.model.remat else remat for remat in REMATS]
    rows = [
        (part, *(gigabytes(getattr(estimates[remat], part)) for remat in REMATS))
        for part in MemoryEstimate._fields
    ]
    limit = placement.limit_bytes
    rows.append(("total", *(gigabytes(estimates[remat].total) for remat in REMATS)))
    rows.append(("of the memory", *(percent(estimates[remat].total / limit, 0) for remat in REMATS)))
    where = f"{placement.num_chips:,} x {placement.chip.name}, {mesh_name(placement.mesh)}"
    title = f"memory of a device by remat policy: {where}"
    notes = [
        f"{placement.num_microbatches} microbatch(es); a program may take {gigabytes(limit)} of a device. * is "
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


def numbers(run: Any, found: Budget) -> dict[str, Any]:
    """For --json."""
    return {
        "parameters": found.params._asdict()
        | {"total": found.params.total, "active": found.params.active, "trained": found.num_trained},
        "tokens_per_step": found.tokens_per_step,
        "num_steps": found.num_steps,
        "tokens": found.tokens,
        "flops_per_token": {
            "weights": found.per_token.weights,
            "attention": found.per_token.attention,
            "formula": found.per_token.formula,
        },
        "flops": found.flops,
    }


def placement_numbers(placement: Placement) -> dict[str, Any]:
    """For --json."""
    return {
        "chip": placement.chip.name,
        "num_chips": placement.num_chips,
        "num_devices": placement.num_devices,
        "mesh": dict(placement.mesh),
        "num_microbatches": placement.num_microbatches,
        "bytes": placement.memory._asdict() | {"total": placement.memory.total},
        "limit_bytes": placement.limit_bytes,
        "fits": placement.fits,
    }
