"""What an hour of a chip costs: prices with provider, region, commitment, date and source; none is used unsaid.

The package's prices are in hardware.yaml. A file of the user's (`--prices=FILE`) is written alike:

    prices:
      - {chip: v5p, usd: 2.94, provider: Google Cloud, region: us-east5, commitment: reserved-1y, date: 2026-11-01,
         url: "https://..."}

and goes first: for a chip that it has prices of, the package's are not looked at.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.config import check_choice
from jaxlm.plan import tables
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.report import dollars
from jaxlm.types import UserError

COMMITMENTS = ("on-demand", "spot", "flex-start", "reserved-1y", "reserved-3y", "negotiated")
"""What a price is the price of. flex-start: capacity that is waited for, then kept for days (Google's DWS)."""

UNKNOWN = "unknown"
"""`date` of a price from a list that carries none."""

MAX_USD = 30.0
"""Above this a price per chip-hour is refused. The dearest in hardware.yaml is $10.80; price lists hold placeholders
such as 700.0 for what cannot be had, and prices of nodes of eight."""

STALE_DAYS = 365
"""An older price is used, with a warning."""

_TABLE = Path(__file__).with_name("hardware.yaml")
_KEYS = ("chip", "usd", "provider", "region", "commitment", "date", "url")


@dataclass(frozen=True)
class Price:
    """One row: US dollars for one chip for one hour."""

    chip: str
    usd: float
    provider: str
    region: str
    commitment: str
    date: str
    """When it held or was read: a day, a month (2025-02), or `UNKNOWN`."""
    url: str
    is_users: bool = False
    """Whether it comes from the user: --price or --prices."""

    def age_days(self, today: datetime.date) -> int | None:
        """None where the date is unknown."""
        return None if self.date == UNKNOWN else (today - tables.day(self.date)).days

    @property
    def when(self) -> str:
        return "snapshot date unknown" if self.date == UNKNOWN else self.date

    def __str__(self) -> str:
        if self.provider == "given":
            return f"{self.chip}: {dollars(self.usd)} per chip-hour, given by --price"
        parts = (self.provider, self.region, self.commitment, self.when, self.url)
        return f"{self.chip}: {dollars(self.usd)} per chip-hour, {', '.join(parts)}"


def load(file: str | Path | None = None) -> list[Price]:
    """The user's prices, if there is a file of them, then the package's. Errors: UserError naming file, row and key."""
    own = _read(_TABLE, ("sources", "chips"), is_users=False)
    return own if file is None else _read(Path(file), (), is_users=True) + own


def _read(path: Path, others: Iterable[str], *, is_users: bool) -> list[Price]:
    table = tables.read(path, ("prices",), others)
    rows = tables.rows(table["prices"], f"{path}: prices")
    return [_price(row, f"{path}: prices[{index}]", is_users) for index, row in enumerate(rows)]


def _price(row: Any, where: str, is_users: bool) -> Price:
    row = tables.fields(row, where, _KEYS)
    check_choice(f"{where}.chip", row["chip"], CHIPS)
    where = f"{where} ({row['chip']})"
    check_choice(f"{where}.commitment", row["commitment"], COMMITMENTS)
    when = row["date"]
    return Price(
        chip=row["chip"],
        usd=_usd(row["usd"], f"{where}.usd"),
        provider=tables.text(row["provider"], f"{where}.provider"),
        region=tables.text(row["region"], f"{where}.region"),
        commitment=row["commitment"],
        date=UNKNOWN if when == UNKNOWN else tables.date(when, f"{where}.date"),
        url=tables.url(row["url"], f"{where}.url"),
        is_users=is_users,
    )


def _usd(value: Any, where: str) -> float:
    usd = tables.number(value, where)
    if usd > MAX_USD:
        raise UserError(
            f"{where}={usd:g} is above {MAX_USD:g}, more than any chip costs in an hour: a placeholder for one that "
            "cannot be had, or the price of a whole node? Give dollars per chip and hour."
        )
    return usd


def given(chip: str, usd: float) -> Price:
    """The price that --price says. Errors: UserError for one that no chip-hour has."""
    check_choice("chip", chip, CHIPS)
    return Price(chip, _usd(usd, "--price"), "given", "-", "given", UNKNOWN, "--price", is_users=True)


def of_chip(prices: Sequence[Price], chip: str) -> list[Price]:
    """All prices of a chip; the user's alone, where there are any."""
    found = [price for price in prices if price.chip == chip]
    return [price for price in found if price.is_users] or found


def matching(
    prices: Sequence[Price], chip: str, *, commitment: str = "on-demand", provider: str | None = None
) -> list[Price]:
    """Prices of a chip for a commitment, the one that `choose` takes first."""
    found = [
        price
        for price in of_chip(prices, chip)
        if price.commitment == commitment and provider in (None, price.provider)
    ]
    by_age = {price: "" if price.date == UNKNOWN else tables.day(price.date).isoformat() for price in found}
    return sorted(sorted(found, key=lambda price: price.usd), key=lambda price: by_age[price], reverse=True)


RULE = "Of several prices of a chip for one commitment the newest is taken, of one day the cheapest; undated ones last."
"""How `choose` chooses."""


def choose(
    prices: Sequence[Price], chip: str, *, commitment: str = "on-demand", provider: str | None = None
) -> Price:
    """The price of a chip, by `RULE`.

    Args:
      provider: only its prices; None: anyone's.

    Errors: UserError that names what there is, and --price, where nothing matches.
    """
    check_choice("chip", chip, CHIPS)
    check_choices(prices, commitment, provider)
    found = matching(prices, chip, commitment=commitment, provider=provider)
    if found:
        return found[0]
    wanted = f"{commitment} price of {chip}" + (f" from {provider}" if provider else "")
    others = sorted({f"{price.commitment} from {price.provider}" for price in of_chip(prices, chip)})
    known = f"known: {', '.join(others)}" if others else f"no public price of {chip} was found"
    raise UserError(
        f"There is no {wanted} ({known}): give dollars per chip-hour with --price=USD or --prices=FILE."
    )


def check_choices(prices: Sequence[Price], commitment: str, provider: str | None) -> None:
    """Errors: UserError for a commitment that is none, or a provider without a price."""
    check_choice("--commitment", commitment, COMMITMENTS)
    if provider is not None:
        check_choice("--provider", provider, sorted({price.provider for price in prices}))


def warnings(prices: Iterable[Price], today: datetime.date) -> list[str]:
    """What has to be said of the ages of prices, one line for each kind; nothing of those that --price gives."""
    undated, stale, future = [], [], []
    for price in prices:
        age = price.age_days(today)
        what = f"{price.chip} ({dollars(price.usd)}, {price.provider})"
        if price.provider == "given":
            continue
        if age is None:
            undated.append(what)
        elif age > STALE_DAYS:
            stale.append(f"{what} of {price.date}")
        elif age < 0:
            future.append(f"{what} of {price.date}")
    way_out = "Check, or give today's with --price=USD or --prices=FILE."
    return [
        f"{said}: {', '.join(found)}. {way_out}"
        for said, found in (
            ("prices from lists without a date, so perhaps over 12 months old", undated),
            ("prices over 12 months old", stale),
            ("prices with dates still to come", future),
        )
        if found
    ]


def warning(price: Price, today: datetime.date) -> str | None:
    """That of `warnings` for one price; None where there is nothing to say."""
    return next(iter(warnings([price], today)), None)
