"""Chip-hours, days, energy and money, against numbers worked out by hand."""

import math

import pytest

from jaxlm.models import sizes
from jaxlm.plan import cost
from jaxlm.plan.cost import Extras
from jaxlm.plan.hardware import CHIPS
from jaxlm.types import UserError

GPT3_FLOPS = 6 * 175e9 * 300e9


def test_chip_hours_are_flops_over_what_a_chip_does_in_an_hour():
    assert cost.compute(GPT3_FLOPS, CHIPS["a100-80gb"], 1.0) == pytest.approx(280_449, rel=1e-5)
    assert cost.compute(GPT3_FLOPS, CHIPS["v5p"], 0.4) == pytest.approx(
        3.15e23 / (459e12 * 0.4) / 3600, rel=1e-12
    )


def test_a_v100_is_counted_by_its_float16_peak():
    assert cost.compute(125e12 * 3600, CHIPS["v100"], 0.5) == pytest.approx(2)


def test_chip_hours_of_a_measured_speed_need_no_flops():
    assert cost.compute_at_rate(300e9, 357.58) == pytest.approx(233_048, rel=1e-5)


def test_implied_mfu_is_the_way_back():
    chip = CHIPS["h100"]
    for mfu in (0.01, 0.385, 1.0):
        assert cost.implied_mfu(GPT3_FLOPS, chip, cost.compute(GPT3_FLOPS, chip, mfu)) == pytest.approx(
            mfu, rel=1e-12
        )


def test_days_money_and_energy_of_chip_hours():
    out = cost.estimate(CHIPS["h100"], 48_000, 2.5, num_chips=100)
    assert out.days == 20
    assert out.compute_usd == 120_000
    assert out.energy_mwh == pytest.approx(48_000 * 700 / 1e6)
    assert cost.estimate(CHIPS["h100"], 48_000, 2.5).days is None


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "tpu7x", "h800"])
def test_energy_is_unknown_where_power_is_not_public(chip):
    assert cost.estimate(CHIPS[chip], 1e6, 1.0).energy_mwh is None


def test_total_equals_compute_until_something_else_is_said():
    out = cost.estimate(CHIPS["v5p"], 1e5, 4.2)
    assert out.total_usd == out.compute_usd


def test_total_is_compute_times_runs_plus_what_else_there_is():
    extras = Extras(runs_factor=1.5, storage_usd=10, network_usd=200, staff_usd=3000, pue=1.2)
    out = cost.estimate(CHIPS["h100"], 1000, 2.0, extras=extras)
    assert out.compute_usd == 2000
    assert out.total_usd == 2000 * 1.5 + 3210
    assert out.energy_mwh == pytest.approx(1000 * 700 * 1.2 / 1e6)  # of the one run
    assert (
        extras.formula
        == "An estimate: total = compute x 1.5 (runs factor) + $10 storage + $200 network + $3,000 staff"
    )


def test_a_training_by_parameters_by_name_and_by_flops():
    by_params = cost.training(num_params=175e9, num_tokens=300e9)
    assert by_params.flops == GPT3_FLOPS
    by_name = cost.training(model="gpt3-175b", num_tokens=300e9)
    assert by_name.flops == 6 * 174_604_259_328 * 300e9
    assert "N = 174,604,259,328" in by_name.formula
    assert cost.training(flops=3.14e23).flops == 3.14e23
    assert cost.training(flops=3.14e23, num_tokens=300e9).num_tokens == 300e9


def test_experts_count_as_far_as_a_token_meets_them():
    """Mixtral 8x7B has 46.7B parameters, of which a token meets 12.9B (arXiv:2401.04088)."""
    flops = cost.training(model="mixtral-8x7b", num_tokens=1e12).flops
    assert flops / 6e12 == pytest.approx(12.88e9, rel=1e-3)
    assert sizes.published_params("mixtral-8x7b") > 46e9


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "Say what is trained by one of --model, --params, --flops, for example"),
        ({"model": "gpt3-175b", "num_params": 1e9, "num_tokens": 1}, "not --model and --params together"),
        ({"num_params": 1e9, "flops": 1e20}, "not --params and --flops together"),
        ({"model": "gpt3-175b"}, "--tokens is needed with --model"),
        ({"model": "gpt3-157b", "num_tokens": 1e9}, "'gpt3-157b' is not one of .*did you mean 'gpt3-175b'"),
        ({"num_params": 1e9, "num_tokens": 0.0}, "--tokens=0 has to be a finite number above 0"),
        ({"num_params": 1e9, "num_tokens": -3e9}, "--tokens=-3e[+]09 has"),
        ({"num_params": 1e9, "num_tokens": math.nan}, "--tokens=nan has"),
        ({"num_params": math.inf, "num_tokens": 1e9}, "--params=inf has"),
        ({"flops": 0.0}, "--flops=0 has"),
        ({"flops": 1e20, "num_tokens": 0.0}, "--tokens=0 has"),
    ],
)
def test_a_training_that_is_none_says_why(kwargs, message):
    with pytest.raises(UserError, match=message):
        cost.training(**kwargs)


@pytest.mark.parametrize("mfu", [0.0, -0.4, 1.01, 40.0, math.nan, math.inf])
def test_mfu_is_a_share(mfu):
    with pytest.raises(UserError, match=r"--mfu=.* has to be above 0 and at most 1"):
        cost.compute(1e20, CHIPS["v5p"], mfu)


def test_a_percentage_is_told_what_share_it_is():
    with pytest.raises(UserError, match="40 %[?] That is 0.4"):
        cost.check_mfu(40)


@pytest.mark.parametrize("num_chips", [0, -8, 2.5, math.nan, math.inf])
def test_chips_are_whole_and_at_least_one(num_chips):
    with pytest.raises(UserError, match="--num-chips=.* has to be a whole number of chips"):
        cost.estimate(CHIPS["v5p"], 1.0, 1.0, num_chips=num_chips)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_measured_speed_is_above_nothing(rate):
    with pytest.raises(UserError, match="--measured-tokens-per-s-per-chip=.* above 0"):
        cost.compute_at_rate(1e9, rate)


@pytest.mark.parametrize(
    ("extras", "flag"),
    [
        ({"runs_factor": 0.5}, "--runs-factor=0.5 .* 1 or more"),
        ({"pue": 0.9}, "--pue=0.9 .* 1 or more"),
        ({"storage_usd": -1}, "--storage-usd=-1 .* 0 or more"),
        ({"network_usd": math.nan}, "--network-usd=nan"),
        ({"staff_usd": math.inf}, "--staff-usd=inf"),
    ],
)
def test_extras_cannot_make_a_training_cheaper(extras, flag):
    with pytest.raises(UserError, match=flag):
        Extras(**extras)
