"""What a training costs: chip-hours, days, energy and money, compute alone and in total.

jaxlm plan cost --model=gpt3-175b --tokens=300e9 --chip=v5p,h100 --mfu=0.3,0.4,0.5 --num-chips=256
jaxlm plan cost --params=70e9 --tokens=2e12                    every chip that has a price
jaxlm plan cost --model=gpt3-175b --tokens=300e9 --chip=v6e --measured-tokens-per-s-per-chip=357.58
jaxlm plan cost --scenarios=gpt3                               the $0.5M-$4.6M that are told of GPT-3, row by row
jaxlm plan cost --published                                    predicted chip-hours beside published ones

Prices carry provider, region, commitment, date and source, and all are printed. They are estimates.
"""

from __future__ import annotations

import argparse
import datetime

from jaxlm.cli._plan_output import emit
from jaxlm.plan import cost, cost_report, cost_scenarios, prices, published
from jaxlm.plan.cost import Extras
from jaxlm.plan.report import Report
from jaxlm.types import UserError

MFUS = "0.3,0.4,0.5"
"""Where trainings of the last years lie: from untuned to well tuned."""

_OF_A_TRAINING = (
    "model", "params", "tokens", "flops", "chip", "mfu", "measured_tokens_per_s_per_chip", "num_chips", "price",
    "prices", "commitment", "provider",
)  # fmt: skip

_EXTRAS = ("runs_factor", "storage_usd", "network_usd", "staff_usd", "pue")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan cost`."""
    what = parser.add_argument_group("what is trained (one of the three)")
    what.add_argument(
        "--model", metavar="NAME", help="a named size, such as gpt3-175b; C = 6 N D, with --tokens"
    )
    what.add_argument("--params", metavar="N", help="parameters that a token meets; C = 6 N D, with --tokens")
    what.add_argument("--flops", metavar="C", help="floating-point operations of all the training")
    what.add_argument("--tokens", metavar="D", help="tokens to train on, such as 300e9")
    speed = parser.add_argument_group("on what")
    speed.add_argument("--chip", metavar="NAMES", help="such as v5p,h100; default: all that have a price")
    speed.add_argument("--mfu", metavar="SHARES", help=f"shares of the chip's peak; default {MFUS}")
    speed.add_argument(
        "--measured-tokens-per-s-per-chip", metavar="RATE", help="a speed that was measured, instead of --mfu"
    )
    speed.add_argument("--num-chips", metavar="NUM", help="how many, to know the days")
    money = parser.add_argument_group("at what price, per chip-hour")
    money.add_argument(
        "--commitment",
        metavar="NAME",
        help=f"{', '.join(prices.COMMITMENTS)}; default {prices.COMMITMENTS[0]}",
    )
    money.add_argument("--provider", metavar="NAME", help="only this one's prices")
    money.add_argument("--price", metavar="USD", help="the price itself, of the one --chip")
    money.add_argument("--prices", metavar="FILE", help="a YAML of prices that go before the package's")
    add_extras_arguments(parser)
    parser.add_argument(
        "--scenarios",
        metavar="NAME",
        help=f"costs under others' assumptions: {', '.join(cost_scenarios.names())}, FILE",
    )
    parser.add_argument("--published", action="store_true", help="predicted chip-hours beside published ones")


def add_extras_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that make a total of compute; their defaults add nothing."""
    extras = parser.add_argument_group(
        "what else there is to pay: total = compute x runs factor + the others"
    )
    for flag, default, meaning in (
        ("--runs-factor", 1.0, "all runs, failed ones and ablations too, per run that succeeds"),
        ("--storage-usd", 0.0, "data and checkpoints"),
        ("--network-usd", 0.0, "traffic"),
        ("--staff-usd", 0.0, "people"),
        ("--pue", 1.0, "power usage effectiveness of the data centre; for MWh"),
    ):
        extras.add_argument(flag, metavar="NUM", default=None, help=f"{meaning}; default {default:g}")


def extras_from(args: argparse.Namespace) -> Extras:
    """What the flags of `add_extras_arguments` say."""
    given = {flag: _number(args, flag) for flag in _EXTRAS}
    return Extras(**{flag: value for flag, value in given.items() if value is not None})


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm plan cost`."""
    if config_argv:
        raise UserError(
            f"{config_argv[0]} is of `jaxlm plan`; `jaxlm plan cost` takes --model, --params or --flops."
        )
    if args.scenarios is not None and args.published:
        raise UserError("--scenarios and --published are two reports: ask for one.")
    if args.scenarios is not None or args.published:
        which = "--published" if args.published else "--scenarios"
        others = _OF_A_TRAINING + (_EXTRAS if args.published else ())
        clash = [flag for flag in others if getattr(args, flag) is not None]
        if clash:
            raise UserError(
                f"{which} has its own trainings, chips and prices: leave --{clash[0].replace('_', '-')} out."
            )
    extras = extras_from(args)
    if args.published:
        emit(published.report(), args)
    elif args.scenarios is not None:
        emit(cost_scenarios.report(cost_scenarios.load(args.scenarios), extras), args)
    else:
        emit(_of_a_training(args, extras), args)
    return 0


def _of_a_training(args: argparse.Namespace, extras: Extras) -> Report:
    training = cost.training(
        model=args.model,
        num_params=_number(args, "params"),
        num_tokens=_number(args, "tokens"),
        flops=_number(args, "flops"),
    )
    rate = _number(args, "measured_tokens_per_s_per_chip")
    if rate is not None and args.mfu is not None:
        raise UserError("--mfu and --measured-tokens-per-s-per-chip are two speeds: give one.")
    mfus = (
        None
        if rate is not None
        else [cost.check_mfu(mfu) for mfu in _numbers("--mfu", MFUS if args.mfu is None else args.mfu)]
    )
    num_chips = _number(args, "num_chips")
    if args.price is not None:
        for flag in ("prices", "commitment", "provider"):
            if getattr(args, flag) is not None:
                raise UserError(f"--price is the price itself: leave --{flag} out.")
    chosen = cost_report.choose_prices(
        prices.load(args.prices),
        None if args.chip is None else _names(args.chip),
        commitment=prices.COMMITMENTS[0] if args.commitment is None else args.commitment,
        provider=args.provider,
        usd=_number(args, "price"),
    )
    if rate is not None and len(chosen.prices) != 1:
        raise UserError("--measured-tokens-per-s-per-chip is the speed of one chip: name it with --chip.")
    whole_chips = None if num_chips is None else cost.check_num_chips(num_chips)
    rows = cost_report.estimates(
        training, chosen, mfus=mfus, tokens_per_s_per_chip=rate, num_chips=whole_chips, extras=extras
    )
    return cost_report.report(
        training,
        chosen,
        rows,
        num_chips=whole_chips,
        tokens_per_s_per_chip=rate,
        extras=extras,
        today=datetime.date.today(),
    )


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag}={text} has to be numbers such as {MFUS}.") from None


def _number(args: argparse.Namespace, name: str) -> float | None:
    """The number that a flag says; None where it is not given."""
    text = getattr(args, name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"--{name.replace('_', '-')}={text} has to be a number, such as 300e9 or 0.4."
        ) from None
