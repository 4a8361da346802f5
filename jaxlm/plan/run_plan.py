"""The plan of one run: parameters, FLOPs, memory, slices, days and money, from its config alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxlm.config import check_choice
from jaxlm.plan.flops import FlopsPerToken, ParamCount, count_params, flops_per_token, training_flops, weights
from jaxlm.plan.hardware import product_flops_per_s
from jaxlm.plan.prices import check_choices
from jaxlm.plan.report import Report, Table, count, flops, percent
from jaxlm.plan.scaling import Law
from jaxlm.plan.slices import (
    RunPlan,
    cost_table,
    find_slices,
    memory_table,
    prices_table,
    slice_numbers,
    slices_table,
    stale,
    too_large,
)
from jaxlm.plan.step_show import steps_table
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

CHINCHILLA = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
"""Nats per token, of Chinchilla's data and tokenizer, as Besiroglu et al. 2024 refitted it (arXiv:2404.10102)."""


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


def plan_run(run: Any, name: str, wanted: RunPlan) -> Report:
    """All that can be said of a run before it starts.

    Args:
      run: a RunConfig with model.vocab_size (and num_classes, where it classifies) filled in.
      name: what the user calls it.

    Errors: UserError for a chip, price or convention that does not exist.
    """
    check_choice("--attention-flops", wanted.attention_flops, ATTENTION_FLOPS)
    check_choices(wanted.prices, wanted.commitment, wanted.provider)
    found = budget(run, wanted.attention_flops)
    slices, without = find_slices(run, found.flops, wanted)
    tables = [parameters_table(found), training_table(run, found, wanted.attention_flops)]
    if slices:
        peaks = [
            one.place.num_chips * (product_flops_per_s(one.place.chip, run.model.dtype) or 1.0)
            for one in slices
        ]
        steps = [steps_table(run, slices, found.flops / found.num_steps, peaks)]
        steps = [table for table in steps if table.rows]
        tables += [
            memory_table(run, slices[0].place),
            slices_table(slices, wanted),
            *steps,
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
    loss, critical = CHINCHILLA.loss(N, D), critical_batch(found)
    if found.tokens_per_step > critical:
        said.append(
            f"a batch of {count(found.tokens_per_step)} tokens is beyond the critical size, about {count(critical)} at "
            f"a loss of {loss:.2f}: more of it saves hardly any steps (Kaplan et al. 2020, arXiv:2001.08361, eq. 5.3)."
        )
    return said


def critical_batch(found: Budget) -> float:
    """Tokens of a batch beyond which more of it saves hardly any steps, at the loss where the run ends."""
    loss = CHINCHILLA.loss(found.params.total, found.tokens)
    return CRITICAL_TOKENS / loss ** (1 / CRITICAL_EXPONENT)


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
