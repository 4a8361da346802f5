"""The $0.5M to $4.6M that are told of GPT-3: every row, its assumptions and its source."""

import pytest

from jaxlm.plan import cost_scenarios
from jaxlm.plan.cost import Extras
from jaxlm.plan.hardware import CHIPS
from jaxlm.types import UserError

# (chip, what is assumed, chip-hours, US dollars), worked out from the sources by hand, before there was code for it.
GPT3 = [
    ("v100", "28 TFLOP/s", 3_115_079, 4.6e6),
    ("a100-80gb", "100% MFU", 280_449, 502e3),
    ("a100-80gb", "100% MFU", 280_449, 561e3),
    ("a100-80gb", "50% MFU", 0.56e6, 1.12e6),
    ("a100-80gb", "40% MFU", 0.70e6, 1.40e6),
    ("a100-80gb", "30% MFU", 0.93e6, 1.87e6),
    ("a100-80gb", "40% MFU", 0.70e6, 1.4e6),
    (None, "-", None, 450e3),
    ("v6e", "357.6 tok/s", 233_048, 629e3),
    ("v6e", "357.6 tok/s", 233_048, 283e3),
    ("v6e", "357.6 tok/s", 233_048, 315e3),
    ("v6e", "431.3 tok/s", 193_214, 522e3),
    ("v5p", "369.1 tok/s", 225_799, 948e3),
    ("v5e", "40% MFU", 1.11e6, 1.33e6),
    ("v5e", "50% MFU", 0.89e6, 1.07e6),
    ("v5p", "40% MFU", 0.48e6, 2.00e6),
    ("v5p", "50% MFU", 0.38e6, 1.60e6),
    ("v6e", "40% MFU", 0.24e6, 0.64e6),
    ("v6e", "50% MFU", 0.19e6, 0.51e6),
    ("v4", "40% MFU", 0.80e6, 2.56e6),
    ("v4", "50% MFU", 0.64e6, 2.05e6),
    ("h100", "40% MFU", 0.22e6, 0.88e6),
    ("h100", "40% MFU", 0.22e6, 2.39e6),
    ("b200", "40% MFU", 0.10e6, 0.68e6),
    ("b200", "50% MFU", 0.08e6, 0.54e6),
]


def test_every_row_of_gpt3_is_within_one_percent():
    rows = cost_scenarios.load("gpt3").rows
    assert [(row.scenario.chip, row.speed) for row in rows] == [(chip, speed) for chip, speed, _, _ in GPT3]
    for row, (chip, speed, chip_hours, usd) in zip(rows, GPT3, strict=True):
        assert row.compute_usd == pytest.approx(usd, rel=0.01), (chip, speed)
        if chip_hours is None:
            assert row.chip_hours is None
        else:  # those of two digits are within half of the last
            rounded = 0.005e6 / chip_hours if chip_hours % 1e4 == 0 else 0.0
            assert row.chip_hours == pytest.approx(chip_hours, rel=max(0.01, rounded)), (chip, speed)


def test_both_ends_of_the_range_are_among_them():
    usd = [row.compute_usd for row in cost_scenarios.load("gpt3").rows]
    assert any(value == pytest.approx(0.5e6, rel=0.01) for value in usd)
    assert any(value == pytest.approx(4.6e6, rel=0.01) for value in usd)
    assert max(usd) == usd[0]


def test_the_low_end_is_marked_as_a_reconstruction_and_nothing_else_is():
    marked = {row.scenario.name for row in cost_scenarios.load("gpt3").rows if row.scenario.is_reconstruction}
    assert marked == {"low end: at peak"}
    table = cost_scenarios.report(cost_scenarios.load("gpt3"), Extras()).tables[0]
    assert [row[0] for row in table.rows if row[1].endswith("*")] == ["2", "3"]
    assert any(note.startswith("* A reconstruction") for note in table.notes)


def test_the_citation_is_put_right():
    notes = " ".join(cost_scenarios.load("gpt3").notes)
    assert "Navigating the High Cost of AI Compute" in notes
    assert "2204.05914" in notes


def test_every_row_has_assumptions_a_source_and_its_price():
    found = cost_scenarios.load("gpt3")
    notes = cost_scenarios.report(found, Extras()).tables[0].notes
    for row in found.rows:
        scenario, usd = row.scenario, row.usd_per_chip_hour
        price = "" if usd is None else f"${usd:g} {row.price_from}"
        said = (f"{scenario.assumptions} ", price, scenario.url, f"({scenario.date})")
        assert sum(all(part in note for part in said) for note in notes if note.startswith("#")) == 1, (
            scenario.name
        )


def test_extras_make_the_total_and_leave_compute_alone():
    found = cost_scenarios.load("gpt3")
    plain = cost_scenarios.report(found, Extras()).data["scenarios"]
    more = cost_scenarios.report(found, Extras(runs_factor=2, staff_usd=1e6)).data["scenarios"]
    for a, b in zip(plain, more, strict=True):
        assert a["total_usd"] == a["compute_usd"] == b["compute_usd"]
        assert b["total_usd"] == 2 * a["compute_usd"] + 1e6


MINE = """
title: Mine
training: {model: llama2-7b, tokens: 2e12}
scenarios:
  - name: mine
    chip: tpu7x
    mfu: 0.5
    prices: [{usd: 5, from: a contract}]
    assumptions: None.
    url: https://a.b/c
    date: 2026-11-01
"""


def test_a_users_file_is_read_alike(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    [row] = cost_scenarios.load(str(file)).rows
    flops = 6 * 6_738_415_616 * 2e12
    assert row.chip_hours == pytest.approx(
        flops / (CHIPS["tpu7x"].training_flops_per_s * 0.5) / 3600, rel=1e-12
    )
    assert row.compute_usd == 5 * row.chip_hours


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mfu: 0.5",
            "mfu: 50",
            r"scenarios\[0\] \(mine\).mfu=50 has to be a finite number above 0 and at most 1",
        ),
        ("mfu: 0.5", "mfu: []", r"mfu has to be a list of rows, but is \[\]"),
        ("mfu: 0.5", "mfo: 0.5", "key='mfo' is not one of"),
        ("mfu: 0.5", "tokens_per_s_per_chip: 0", "tokens_per_s_per_chip=0 has to be"),
        ("mfu: 0.5", "mfu: 0.5\n    sustained_flops_per_s: 1e12", "has to have one of .*, not 2"),
        ("chip: tpu7x", "chip: tpu8x", "chip='tpu8x' is not one of .*did you mean 'tpu7x'"),
        ("    chip: tpu7x\n", "", "chip is missing; it has to have"),
        ("usd: 5", "usd: 700.0", r"prices\[0\].usd=700.0 has to be a finite number above 0 and at most 30"),
        ("from: a contract", "form: a contract", "key='form' is not one of usd, from"),
        ("prices: [{usd: 5, from: a contract}]", "prices: 5", "prices has to be a list of rows"),
        ("tokens: 2e12", "tokens: 0", "training.tokens=0 has to be"),
        ("model: llama2-7b", "model: llama-7b", "training: size='llama-7b' is not one of .*did you mean"),
        ("model: llama2-7b, ", "", "training: Say what is trained"),
        ("date: 2026-11-01", "date: soon", "date='soon' has to be a day"),
        ("assumptions: None.", "assumptions: ''", "assumptions has to be text"),
        ("scenarios:", "scenario:", "key='scenario' is not one of .*did you mean 'scenarios'"),
        ("title: Mine", "title: [", "is not YAML"),
    ],
)
def test_a_broken_file_names_row_and_key(tmp_path, old, new, message):
    assert old in MINE
    file = tmp_path / "mine.yaml"
    file.write_text(MINE.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        cost_scenarios.load(str(file))
    assert str(file) in str(caught.value)


def test_an_unknown_scenario_names_the_known_ones():
    with pytest.raises(UserError, match="'gpt4' is not one of gpt3; did you mean 'gpt3'"):
        cost_scenarios.load("gpt4")
