"""Both sides of a run, from events as its log holds them."""

import io

import pytest

from jaxlm.plan import report
from jaxlm.plan.compare import compare, needed_keys, tables
from jaxlm.report.events import last_of_each_step
from jaxlm.types import UserError

PLAN = {
    "event": "plan", "time_s": 100.0, "first_step": 0, "num_steps": 4, "num_processes": 1, "num_devices": 8,
    "num_chips": 4.0, "device_kind": "TPU v4", "peak_flops_per_s": 1e15, "num_positions": 400,
    "flops_per_token": 1e13, "flops": 4e15, "device_bytes": 2e9,
    "sources": {"web": {"tokens": 300, "epochs": 0.5}, "books": {"tokens": 90, "epochs": 3.0}},
}  # fmt: skip
START, END = {"event": "start", "time_s": 100.0}, {"event": "end", "time_s": 190.0, "seconds": 95.0}


def step(number, time_s, **fields):
    tokens = {"data/web/tokens": 75 * number, "data/web/epochs": number / 8, "data/books/tokens": 20 * number,
              "data/books/epochs": 0.7 * number}  # fmt: skip
    measured = {"perf/step_time_s": 10.0 * number, "perf/mfu": 0.1 * number}
    counts = {"train/num_tokens": 97.0, "train/num_inputs": 100}
    return {"event": "step", "time_s": time_s, "step": number} | counts | tokens | measured | fields


def log(*events):
    return [START, PLAN, *(step(n, 100.0 + 20 * n) for n in (1, 2, 3, 4)), *events, END]


def compared(events, **options):
    return compare("runs/a", events, last_of_each_step(events), num_steps=4, **options)


def test_a_run_without_interruptions():
    peaks = [{"event": "memory", "time_s": 185.0, "peak_device_bytes": peak} for peak in (3e9, 1e9)]
    found = compared(log(*peaks))
    assert found.is_finished
    assert (found.planned.steps, found.happened.steps, found.num_lost) == (4, 4, 0)
    assert (found.planned.tokens, found.happened.tokens) == (390, 4 * 97)
    assert (found.planned.flops, found.happened.flops) == (4e15, 400 * 1e13)
    assert (found.planned.device_bytes, found.happened.device_bytes) == (2e9, 3e9)
    assert found.happened.step_time_s == 25.0  # the median of 10, 20, 30, 40
    assert found.happened.mfu == 0.25
    assert found.happened.chip_hours == 90 * 4 / 3600
    assert found.happened.sources["books"].tokens == 80
    assert found.happened.sources["books"].epochs == 0.7 * 4
    assert found.planned.sources["books"].epochs == 3.0


def test_a_planned_time_needs_an_mfu_and_a_known_chip():
    assert (compared(log()).planned.step_time_s, compared(log()).planned.chip_hours) == (None, None)
    found = compared(log(), mfu=0.4).planned
    assert found.step_time_s == 1e15 / (0.4 * 1e15)
    assert found.chip_hours == 4 * 2.5 * 4 / 3600
    none = [event | {"num_steps": 0.5} if event["event"] == "plan" else event for event in log()]  # edited
    assert compared(none, mfu=0.4).planned.step_time_s is None
    cpu = [event | {"peak_flops_per_s": None} if event["event"] == "plan" else event for event in log()]
    assert compared(cpu, mfu=0.4).planned.step_time_s is None


def test_a_restart_counts_its_steps_once_and_its_time_twice():
    events = [
        START, PLAN, step(1, 120.0), step(2, 140.0), step(3, 160.0, **{"train/num_tokens": 50.0}),
        {"event": "failed", "time_s": 9000.0}, {"event": "message", "time_s": 9500.0},
        {"event": "start", "time_s": 10_000.0}, PLAN | {"num_chips": 8.0, "num_devices": 16},
        step(3, 10_020.0), step(4, 10_040.0), {"event": "end", "time_s": 10_050.0},
        {"event": "message", "time_s": 99_999.0},
    ]  # fmt: skip
    found = compared(events)
    assert found.is_finished
    assert found.num_lost == 1
    assert [(a.seconds, a.num_chips, a.num_steps) for a in found.attempts] == [(60, 4, 3), (50, 8, 2)]
    assert found.happened.tokens == 4 * 97
    assert found.happened.flops == 400 * 1e13
    assert found.happened.chip_hours == (60 * 4 + 50 * 8) / 3600
    assert found.hardware == "16 TPU v4 device(s), 1 process(es)"


def test_a_finished_run_that_goes_on_is_unfinished_until_it_ends_again():
    assert not compared(
        [*log(), START | {"time_s": 500.0}, PLAN | {"num_steps": 8}, step(5, 510.0)]
    ).is_finished
    assert not compared([START, PLAN, step(1, 120.0)]).is_finished


def test_a_log_without_a_plan_says_what_it_can():
    found = compared([event for event in log() if event["event"] != "plan"], mfu=0.4)
    assert (found.planned.steps, found.planned.tokens, found.happened.tokens) == (4, None, 388)
    assert (found.happened.chip_hours, found.happened.flops) == (None, None)
    assert "no event `plan`" in str(tables(found)[0].notes)


def test_a_log_of_before_num_inputs_counts_tokens():
    events = [{key: value for key, value in e.items() if key != "train/num_inputs"} for e in log()]
    assert compared(events).happened.flops == 388 * 1e13


def test_what_is_left_out_while_reading_changes_nothing():
    events = log({"event": "eval", "time_s": 186.0, "step": 4, "eval/loss": 1.0})
    fewer = [needed_keys(event | {"train/loss": 1.0}) for event in events]
    assert compared(fewer) == compared(events)
    assert "train/loss" not in fewer[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"event": "step", "train/num_tokens": "many"},
            "event 'step' of its log has train/num_tokens='many'",
        ),
        ({"event": "step", "train/num_tokens": None}, "train/num_tokens=None"),
        ({"event": "step", "train/num_inputs": float("inf")}, "train/num_inputs=inf"),
        ({"event": "step", "perf/step_time_s": True}, "perf/step_time_s=True"),
        ({"event": "step", "data/web/epochs": "x"}, "data/web/epochs='x'"),
        ({"event": "plan", "flops": None}, "event 'plan' of its log has flops=None"),
        ({"event": "plan", "device_bytes": 10**400}, "device_bytes=1000"),
        ({"event": "plan", "sources": None}, "has no sources"),
        ({"event": "plan", "sources": {"web": 3}}, "'plan of web' of its log has tokens=None"),
        ({"event": "plan", "num_chips": "4"}, "no sources, num_chips or"),
        ({"event": "plan", "num_steps": 0}, "no sources, num_chips or num_steps"),
        ({"event": "plan", "num_devices": None}, "num_devices=None"),
    ],
)
def test_an_edited_log_is_refused_by_what_is_wrong_in_it(change, message):
    events = [event | change if event["event"] == change["event"] else event for event in log()]
    with pytest.raises(UserError, match=message):
        compared(events)


def test_nothing_trained_is_nothing_to_compare():
    with pytest.raises(UserError, match="runs/a: its log has no step yet"):
        compared([START, PLAN, {"event": "failed", "time_s": 101.0}])


def test_on_a_cpu_the_peak_of_the_process_is_said():
    found = compared(log({"event": "memory", "time_s": 185.0, "peak_process_bytes": 3e9}))
    assert found.happened.device_bytes is None
    said = tables(found)[0].notes[-1]
    assert (
        said == "its log has no peak of a device's memory: CPUs count none; its process held 3.00 GB at most"
    )


GOLDEN = """\
two
runs/a

                      planned   happened    ratio
 ────────────────────────────────────────────────
 steps                      4          4    1.000
 tokens trained on        390        388    0.995
 time of a step         2.5 s       25 s   10.000
 memory of a device   2.00 GB    3.00 GB    1.500
 chip-hours           0.01111        0.1    9.000
 model FLOPs            4e+15      4e+15    1.000
 MFU                    40.0%      25.0%    0.625
 money                  $0.13      $1.20    9.000

1 start(s), 90 s of training, on 8 TPU v4 device(s), 1 process(es)
runs/a: sources

 source   tokens planned   happened   ratio   epochs planned   happened
 ──────────────────────────────────────────────────────────────────────
 books                90         80   0.889            3.000      2.800
 web                 300        300   1.000            0.500      0.500


"""


def test_the_tables_fit_a_terminal():
    found = compared(log({"event": "memory", "time_s": 185.0, "peak_device_bytes": 3e9}), mfu=0.4)
    file = io.StringIO()
    report.print_report(report.Report("two", tables(found, price_usd=12.0)), file)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= report.WIDTH
    assert [line for line in lines if line] == [line for line in GOLDEN.splitlines() if line]
