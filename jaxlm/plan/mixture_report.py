"""What `jaxlm plan mixture` says: a mixture's tokens and epochs, published epochs checked, caps and needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from jaxlm.plan.mixture import (
    WORTH_REPEATING_EPOCHS,
    MixtureTable,
    Published,
    cap_epochs,
    needs,
    published,
)
from jaxlm.plan.report import Report, Table, count, percent

UNKNOWN = "?"


def mixture_report(
    table: MixtureTable,
    *,
    max_epochs: Mapping[str, float] | None = None,
    need: bool = False,
    check_published: bool = True,
    notes: Sequence[str] = (),
) -> Report:
    """The mixture as it is, and what follows from a limit on epochs.

    Args:
      max_epochs: by source. Without `need`, weights that keep them; with it, what each source must have for them.
      check_published: compare with the epochs that the mixture's paper prints, where it has any.
      notes: where budget and sizes come from.

    Errors: UserError for weights that are all zero, and for caps that the sources cannot fill.
    """
    shares, warning = table.shares()
    tables, warnings = [_tokens_table(table, shares)], [warning] if warning else []
    data: dict[str, Any] = {
        "budget_tokens": table.budget_tokens,
        "origin": table.origin,
        "weight_sum": sum(source.weight for source in table.sources),
        "sources": _sources_data(table, shares),
    }
    final = shares
    if max_epochs and not need:
        final = cap_epochs(table, shares, max_epochs)
        tables.append(_capped_table(table, shares, final, max_epochs))
        data["capped"] = _sources_data(table, final)
        for name, limit in max_epochs.items():
            data["capped"][name]["max_epochs"] = limit
    if need:
        found = needs(table, shares, max_epochs or {})
        tables.append(_need_table(table, shares, max_epochs or {}))
        data["need"] = {name: one._asdict() for name, one in found.items()}
    if check_published and (checked := published(table)):
        tables += _published_tables(table, checked)
        data["published"] = {
            name: one._asdict() | {"is_rounding": one.is_rounding} for name, one in checked.items()
        }
        data["published_drawn_tokens"] = sum(one.drawn_tokens for one in checked.values())
    warnings += _repeated(table, final)
    return Report(
        title=f"Mixture of {table.title}: {count(table.budget_tokens)} tokens to train on",
        tables=tables,
        warnings=warnings,
        notes=[*notes, *([f"Source: {table.origin}."] if table.origin else [])],
        data=data,
    )


def _sources_data(table: MixtureTable, shares: Mapping[str, Fraction]) -> dict[str, dict[str, Any]]:
    drawn, epochs = table.drawn(shares), table.epochs(shares)
    return {
        s.name: {
            "tokens": s.tokens,
            "weight": s.weight,
            "share": float(shares[s.name]),
            "drawn_tokens": float(drawn[s.name]),
            "epochs": epochs[s.name],
        }
        for s in table.sources
    }


def _tokens(value: float | None) -> str:
    return UNKNOWN if value is None else count(value)


def _epochs(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.3f}"


def _total_tokens(table: MixtureTable) -> float | None:
    """Of all sources together; None where one is not known."""
    known = [source.tokens for source in table.sources if source.tokens is not None]
    return sum(known) if len(known) == len(table.sources) else None


def _tokens_table(table: MixtureTable, shares: Mapping[str, Fraction]) -> Table:
    drawn, epochs, total = table.drawn(shares), table.epochs(shares), _total_tokens(table)
    rows = [
        [
            s.name,
            _tokens(s.tokens),
            f"{s.weight:g}",
            percent(float(shares[s.name]), 2),
            count(float(drawn[s.name])),
            _epochs(epochs[s.name]),
        ]
        for s in table.sources
    ]
    uniform = None if total is None else table.budget_tokens / total
    weight = sum(source.weight for source in table.sources)
    rows.append(
        ["sum", _tokens(total), f"{weight:g}", "100.00%", count(table.budget_tokens), _epochs(uniform)]
    )
    notes = [
        "epochs = share x budget / tokens; in the last row, those of a mixture in proportion to the tokens"
    ]
    if total is None:
        notes.append(f"{UNKNOWN}: nobody has counted the tokens of this source")
    return Table(
        "Tokens per source", ("source", "tokens", "weight", "share", "drawn tokens", "epochs"), rows, notes
    )


def _capped_table(
    table: MixtureTable,
    before: Mapping[str, Fraction],
    after: Mapping[str, Fraction],
    max_epochs: Mapping[str, float],
) -> Table:
    epochs_before, epochs_after, drawn = table.epochs(before), table.epochs(after), table.drawn(after)
    rows = [
        [
            s.name,
            f"{max_epochs[s.name]:g}" if s.name in max_epochs else "-",
            _epochs(epochs_before[s.name]),
            _epochs(epochs_after[s.name]),
            percent(float(before[s.name]), 2),
            percent(float(after[s.name]), 2),
            count(float(drawn[s.name])),
        ]
        for s in table.sources
    ]
    rows.append(["sum", "", "", "", "100.00%", "100.00%", count(table.budget_tokens)])
    columns = ("source", "max epochs", "epochs", "capped", "share", "capped share", "drawn tokens")
    weights = ",".join(f"{name}={float(100 * share):.9g}" for name, share in after.items())
    notes = [
        "what a cap cuts off is spread over the others in proportion; as weights:",
        f"--weights={weights}",
    ]
    return Table("With epochs capped", columns, rows, notes)


def _need_table(
    table: MixtureTable, shares: Mapping[str, Fraction], max_epochs: Mapping[str, float]
) -> Table:
    found, sizes = needs(table, shares, max_epochs), {s.name: s.tokens for s in table.sources}
    rows = [
        [
            name,
            percent(float(shares[name]), 2),
            count(one.drawn_tokens),
            f"{one.max_epochs:g}",
            count(one.needed_tokens),
            _tokens(sizes[name]),
            _tokens(one.short_tokens),
        ]
        for name, one in found.items()
    ]
    needed, short = (
        sum(one.needed_tokens for one in found.values()),
        [one.short_tokens for one in found.values()],
    )
    total_short = None if None in short else sum(value for value in short if value is not None)
    rows.append(
        [
            "sum",
            "100.00%",
            count(table.budget_tokens),
            "",
            count(needed),
            _tokens(_total_tokens(table)),
            _tokens(total_short),
        ]
    )
    columns = ("source", "share", "drawn tokens", "max epochs", "needs", "has", "short")
    return Table(
        "Tokens that each source needs", columns, rows, ["needs = drawn / max epochs, all different"]
    )


def _published_tables(table: MixtureTable, checked: Mapping[str, Published]) -> list[Table]:
    """Published epochs beside the formula's, and the tokens that they stand for."""
    budget, total_weight = table.budget_tokens, sum(source.weight for source in table.sources)
    off = table.rounding
    assert off is not None  # else nothing was checked
    formula = [
        [
            name,
            f"{one.epochs:g}",
            f"{one.formula:.3f}",
            f"{one.difference:+.1%}",
            f"{one.low:.3f} to {one.high:.3f}",
            "yes" if one.is_rounding else "NO",
            f"{one.normalised:.3f}",
        ]
        for name, one in checked.items()
    ]
    columns = (
        "source",
        "published",
        "formula",
        "difference",
        "rounding allows",
        "explained",
        f"weight / {total_weight:g}%",
    )
    sources = {source.name: source for source in table.sources}
    drawn = [
        [
            name,
            f"{sources[name].weight:g}%",
            _exact_billions(one.drawn_tokens),
            f"{one.implied_weight:.1f}%",
            f"{one.implied_weight - sources[name].weight:+.1f}",
        ]
        for name, one in checked.items()
    ]
    drawn_tokens = sum(one.drawn_tokens for one in checked.values())
    implied = 100 * drawn_tokens / budget
    drawn.append(
        [
            "sum",
            f"{total_weight:g}%",
            _exact_billions(drawn_tokens),
            f"{implied:.1f}%",
            f"{implied - total_weight:+.1f}",
        ]
    )
    return [
        Table(
            "Published epochs beside the formula's",
            columns,
            formula,
            [
                f"formula = weight x {count(budget)} / tokens; rounding: weight +-{off.weight:g} points, tokens +-"
                f"{off.tokens / 1e9:g}B"
            ],
        ),
        Table(
            "Tokens that the published epochs stand for",
            ("source", "weight", "epochs x tokens", f"of {count(budget)}", "difference"),
            drawn,
            _mismatches(table, checked),
        ),
    ]


def _exact_billions(tokens: float) -> str:
    return f"{tokens / 1e9:.2f}B"


def _mismatches(table: MixtureTable, checked: Mapping[str, Published]) -> list[str]:
    """What does not add up in a published table, by name."""
    total = sum(source.weight for source in table.sources)
    notes = [] if total == 100 else [f"The weights add to {total:g}%, not to 100%."]
    weights = {source.name: source.weight for source in table.sources}
    notes += [
        f"{name}'s {one.epochs:g} epochs imply {one.implied_weight:.1f}% of the tokens, not {weights[name]:g}%; "
        f"rounding allows {one.low:.2f} to {one.high:.2f} epochs."
        for name, one in checked.items()
        if not one.is_rounding
    ]
    drawn = sum(one.drawn_tokens for one in checked.values())
    if len(checked) == len(table.sources) and abs(drawn / table.budget_tokens - 1) > 0.01:
        notes.append(
            f"The published epochs account for {count(drawn)} of {count(table.budget_tokens)} tokens."
        )
    return notes


def _repeated(table: MixtureTable, shares: Mapping[str, Fraction]) -> list[str]:
    return [
        f"{name} is read {epochs:.1f} times: up to {WORTH_REPEATING_EPOCHS} epochs are almost as good as new tokens, "
        "later ones are worth less and less (Muennighoff et al. 2023, arXiv:2305.16264). See --max-epochs."
        for name, epochs in table.epochs(shares).items()
        if epochs is not None and epochs > WORTH_REPEATING_EPOCHS
    ]
