"""Mixtures as files: those that come with the package, and your own.

    title: Mine                       # optional, as are source and rounding
    source: where the numbers were read
    budget_tokens: 10e9               # optional: --tokens says it too
    rounding: {weight: 0.5, tokens: 0.5e9}
    sources:
      - {name: web, tokens: 40e9, weight: 70}
      - {name: books, tokens: 2e9, weight: 30, published_epochs: 1.5}

`tokens: null` says that nobody has counted them. `published_epochs` needs `rounding`, half a unit of the last printed
digit of weight and tokens, and weights in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.config import check_choice, nearest
from jaxlm.data.yaml_files import read_yaml
from jaxlm.limits import short
from jaxlm.plan.mixture import MixtureTable, Rounding, Source
from jaxlm.types import UserError

FOLDER = Path(__file__).parent / "mixtures"
KEYS = ("title", "source", "budget_tokens", "rounding", "sources")
SOURCE_KEYS = ("name", "tokens", "weight", "published_epochs")
SMALLEST, LARGEST = 1e-9, 1e21
"""Of numbers that are read: beyond lie only mistakes, and what floats cannot divide."""
LEAST_PERCENT = 10
"""Published weights that add to less are no percentages."""


def names() -> list[str]:
    """Mixtures of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_mixture(name: str, budget_tokens: float | None = None) -> MixtureTable:
    """A mixture of the package by its name, or one of a .yaml file.

    Args:
      budget_tokens: in place of the file's.

    Errors: UserError that names the file and what is wrong in it.
    """
    if name in names():
        path = FOLDER / f"{name}.yaml"
    elif Path(name).suffix in (".yaml", ".yml"):
        path = Path(name)
    else:
        match = nearest(name, names())
        hint = f"; did you mean {match}?" if match else f": give {', '.join(names())}, or a .yaml file."
        raise UserError(f"{name!r} is no mixture{hint}")
    found = read_yaml(path, f"{', '.join(names())}, or a .yaml file")
    return _table(str(path), _mapping(str(path), found, KEYS, needed=("sources",)), budget_tokens)


def _mapping(where: str, value: Any, keys: Iterable[str], needed: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping with keys {', '.join(keys)}, not {short(value)}.")
    for key in value:
        check_choice(f"{where}: key", key, keys)
    for key in needed:
        if key not in value:
            raise UserError(f"{where} has no {key!r}: it needs {', '.join(needed)}.")
    return value


def number(where: str, value: Any, *, zero: bool = False) -> float:
    """A number that quantities of a plan can be, or its text (YAML reads 3e9 as text). Errors: UserError.

    Args:
      zero: whether 0 will do.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        found = float(value)
    except (ValueError, OverflowError):
        raise UserError(f"{where}={short(value)} must be a number, such as 3e9.") from None
    if not (SMALLEST <= found <= LARGEST or (zero and found == 0)):
        least = f"0, or from {SMALLEST:g}" if zero else f"from {SMALLEST:g}"
        raise UserError(f"{where}={short(value)} must be {least} to {LARGEST:g}.")
    return found


def _table(path: str, found: Mapping[str, Any], budget_tokens: float | None) -> MixtureTable:
    if not isinstance(found["sources"], list) or not found["sources"]:
        raise UserError(f"{path}: 'sources' must be a list of {{name: ..., tokens: ..., weight: ...}}.")
    sources = tuple(_source(path, index, entry) for index, entry in enumerate(found["sources"], start=1))
    everyone = [source.name for source in sources]
    if twice := next((name for name in everyone if everyone.count(name) > 1), None):
        raise UserError(f"{path}: source {twice!r} stands there twice. Give each source once.")
    if budget_tokens is None:
        if found.get("budget_tokens") is None:
            raise UserError(f"{path} has no 'budget_tokens': add it, or give --tokens=NUMBER.")
        budget_tokens = number(f"{path}: budget_tokens", found["budget_tokens"])
    rounding = None
    if found.get("rounding") is not None:
        off = _mapping(f"{path}: rounding", found["rounding"], Rounding._fields, needed=Rounding._fields)
        rounding = Rounding(
            *(number(f"{path}: rounding.{key}", off[key], zero=True) for key in Rounding._fields)
        )
    title = found.get("title") or Path(path).stem
    table = MixtureTable(str(title), sources, budget_tokens, str(found.get("source") or ""), rounding)
    _check_published(path, table)
    return table


def _source(path: str, index: int, entry: Any) -> Source:
    where = f"{path}: source {index}"
    entry = _mapping(where, entry, SOURCE_KEYS, needed=SOURCE_KEYS[:3])
    name = entry["name"]
    if not isinstance(name, str) or not name.strip() or set(name) & {",", "="}:
        raise UserError(f"{where}: name={short(name)} must be a text without ',' and '=', which flags need.")
    where, epochs = f"{path}: {name}.", entry.get("published_epochs")
    return Source(
        name,
        number(f"{where}weight", entry["weight"], zero=True),
        None if entry["tokens"] is None else number(f"{where}tokens", entry["tokens"]),
        None if epochs is None else number(f"{where}published_epochs", epochs),
    )


def _check_published(path: str, table: MixtureTable) -> None:
    """Published epochs need what they are compared with."""
    those = [source for source in table.sources if source.published_epochs is not None]
    if not those:
        return
    if table.rounding is None:
        raise UserError(
            f"{path}: {those[0].name}.published_epochs needs 'rounding: {{weight: ..., tokens: ...}}', half a unit of "
            "the last printed digit: else nobody can say what rounding explains."
        )
    total = sum(source.weight for source in table.sources)
    if total < LEAST_PERCENT:
        raise UserError(
            f"{path}: published_epochs need weights in percent, and these add to {total:g}. Multiply them by 100."
        )
    for source in those:
        if source.tokens is None or source.tokens <= table.rounding.tokens or not source.weight:
            raise UserError(
                f"{path}: {source.name}.published_epochs needs a weight above 0, and tokens above rounding.tokens="
                f"{table.rounding.tokens:g}."
            )
