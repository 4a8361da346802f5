"""The plan of a run: what it counts, what it warns of, and that its numbers are those of the published models."""

import dataclasses
import datetime

import pytest

from jaxlm import run
from jaxlm.cli._plan_run import completed
from jaxlm.plan import prices, run_plan, slices, step_time
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.report import gigabytes, to_json
from jaxlm.types import UserError

WANTED = slices.RunPlan(
    chips=("v5e",),
    num_chips=256,
    mfus=(0.4, 0.5),
    attention_flops="half",
    prices=prices.load(),
    price_usd=2.0,
    commitment="on-demand",
    provider=None,
    pue=1.0,
    within_days=30.0,
    today=datetime.date(2026, 11, 26),
)


def config(*flags):
    return completed(run.resolve(run.parse(list(flags))))[0]


@pytest.fixture(scope="module")
def llama():
    return config("--config=pretrain_llama2_7b_v5e256")


def test_days_and_dollars_follow_from_flops_peak_and_mfu(llama):
    found = run_plan.budget(llama)
    data = run_plan.plan_run(llama, "llama", WANTED).data
    (one,) = data["slices"]
    chip_hours = found.flops / (197e12 * 0.4) / 3600
    assert one["at_low_mfu"]["chip_hours"] == pytest.approx(chip_hours)
    assert one["at_low_mfu"]["days"] == pytest.approx(chip_hours / 256 / 24)
    assert one["at_low_mfu"]["compute_usd"] == pytest.approx(2 * chip_hours)
    assert one["at_high_mfu"]["chip_hours"] == pytest.approx(0.8 * chip_hours)


def test_without_an_mfu_days_follow_from_the_predicted_step(llama):
    (one,) = run_plan.plan_run(llama, "llama", WANTED._replace(mfus=None)).data["slices"]
    step = step_time.predict_step(llama, CHIPS["v5e"], one["mesh"], (16, 16))
    shortest, longest = step_time.time_range(step)
    assert one["step"]["step_s"] == step.step_s
    assert one["at_high_mfu"]["chip_hours"] == pytest.approx(476_837 * shortest / 3600 * 256)
    assert one["at_low_mfu"]["chip_hours"] == pytest.approx(476_837 * longest / 3600 * 256)
    assert one["mfu"]["low"] == pytest.approx(
        run_plan.budget(llama).flops / 476_837 / (longest * 256 * 197e12)
    )


def test_an_mfu_that_is_given_takes_the_place_of_the_predicted_one(llama):
    (one,) = run_plan.plan_run(llama, "llama", WANTED).data["slices"]
    assert one["mfu"] == {"low": 0.4, "high": 0.5}


def test_steps_of_gpus_are_not_predicted(llama):
    report = run_plan.plan_run(
        llama, "llama", WANTED._replace(chips=("h100", "v5p"), num_chips=None, mfus=None)
    )
    h100, v5p = report.data["slices"]
    assert (h100["step"], h100["mfu"]) == (None, {"low": 0.3, "high": 0.5})
    assert v5p["step"]["bound"] == "compute"
    (table,) = [one for one in report.tables if one.title == "predicted time of a step"]
    assert [row[0] for row in table.rows] == ["v5p"]
    (note,) = [note for one in report.tables for note in one.notes if "h100, whose steps" in note]
    assert "50% to 30%" in note


@pytest.mark.parametrize(
    ("size", "topology", "rows", "seq_len", "tflops"),
    [
        # What MaxText 0.2.5 counts for its own recipes, per device and step: 6 N, attention's causal half.
        ("llama2-7b", ("v5e", 256), 4, 2048, 337.9),
        ("llama2-7b", ("v5p", 64), 4, 4096, 702.3),
        ("llama3.1-8b", ("v6e", 256), 4, 8192, 1687),
    ],
)
def test_flops_are_those_that_maxtext_counts(size, topology, rows, seq_len, tflops):
    cfg = config(f"--config=pretrain_size:{size}", f"--config.data.seq_len={seq_len}")
    per_token = run_plan.budget(cfg).per_token.total
    assert per_token * rows * seq_len / 1e12 == pytest.approx(tflops, rel=1e-3)


def test_the_conventions_differ_by_the_attention_alone(llama):
    half, whole, none = (run_plan.budget(llama, name).per_token for name in run_plan.ATTENTION_FLOPS)
    assert whole.attention == 2 * half.attention > 0
    assert none.attention == 0
    assert half.weights == whole.weights == none.weights
    with pytest.raises(
        UserError, match=r"--attention-flops='halved' is not one of half, .*did you mean 'half'"
    ):
        run_plan.plan_run(llama, "llama", WANTED._replace(attention_flops="halved"))


def test_memory_is_listed_for_every_remat_policy_and_adds_up(llama):
    place = slices.placement_on(llama, CHIPS["v5e"], 256)
    assert place is not None
    table = slices.memory_table(llama, place)
    assert table.columns[1:] == ("none", "minimal", "save_dots", "save_attention *", "full")
    totals = dict((row[0], row[1:]) for row in table.rows)["total"]
    assert totals[3] == gigabytes(place.memory.total)


def tokens_per_parameter(ratio, **changes):
    cfg = config("--config=pretrain_size:gpt3-1.3b")
    data = dataclasses.replace(cfg.data, **changes)
    num_steps = round(ratio * 1.316e9 / (data.global_batch_size * data.seq_len))
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, num_steps=num_steps), data=data)


@pytest.mark.parametrize(("ratio", "said"), [(2, "a smaller model"), (20, None), (500, "a larger model")])
def test_tokens_per_parameter_far_from_optimal_are_warned_of(ratio, said):
    cfg = tokens_per_parameter(ratio)
    found = run_plan.unusual(cfg, run_plan.budget(cfg))
    assert [said in one and "2203.15556" in one for one in found] == ([True] if said else [])


def test_a_batch_beyond_the_critical_size_is_warned_of():
    cfg = tokens_per_parameter(20, global_batch_size=8192)  # 16.8M tokens
    (found,) = run_plan.unusual(cfg, run_plan.budget(cfg))
    assert found.startswith("a batch of 16.8M tokens is beyond the critical size")
    assert "2001.08361" in found


def test_a_run_that_does_not_fit_says_by_how_much(llama):
    report = run_plan.plan_run(llama, "llama", WANTED._replace(num_chips=4))
    (said,) = [one for one in report.warnings if "does not fit" in one]
    assert "it does not fit on 4 x v5e: " in said
    assert "of 16.9 GB" in said
    assert report.data["slices"][0]["fits"] is False


def test_chips_that_cannot_take_it_are_named(llama):
    small = WANTED._replace(chips=("v100", "v5e"), num_chips=None)
    report = run_plan.plan_run(config("--config=pretrain_size:gpt3-175b"), "gpt3", small)
    assert any(one.startswith("v100 is left out: its units do not multiply") for one in report.warnings)


def test_prices_are_said_and_old_ones_warned_of(llama):
    listed = WANTED._replace(price_usd=None, num_chips=None, chips=("v5e", "h100", "tpu7x"))
    report = run_plan.plan_run(llama, "llama", listed)
    shown = {table.title: table.rows for table in report.tables}["prices"]
    assert [row[0] for row in shown] == ["v5e", "h100"]  # nobody publishes what a tpu7x costs
    assert any(
        "the prices of v5e are over 12 months old, or from a list without a date" in w
        for w in report.warnings
    )
    later = run_plan.plan_run(llama, "llama", listed._replace(today=datetime.date(2028, 1, 1)))
    assert any("the prices of v5e, h100 are over" in w for w in later.warnings)


def test_fine_tuning_counts_what_is_trained():
    cfg = config("--config=instruct_lora_llama31_8b_v6e8")
    report = run_plan.plan_run(cfg, "lora", WANTED._replace(chips=("v6e",), num_chips=8))
    parts = {row[0]: row[1] for row in report.tables[0].rows}
    assert parts["total"] == "8,030,261,248"
    assert parts["trained"] == "41,943,040"
    assert not [one for one in report.warnings if "tokens a parameter" in one]
    assert report.data["slices"][0]["fits"]
    to_json(report)
