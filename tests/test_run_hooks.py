"""What a run logs on chips that are not here: MFU where the chip is known, FLOP/s alone where it is not."""

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest

from jaxlm import run, run_hooks
from jaxlm.data.config import DataConfig
from jaxlm.data.notices import Notices
from jaxlm.models import sizes
from jaxlm.plan.flops import flops_per_token
from jaxlm.report.events import read_events
from jaxlm.report.progress import Progress
from jaxlm.report.run_report import RunReport
from jaxlm.runconfig import RunConfig

MODEL, T, V5E = sizes.size("gpt3-125m"), 2048, "TPU v5 lite"

SOURCES = (SimpleNamespace(name="web", planned_tokens=150_000, planned_epochs=0.5),)


def run_on(device_kind, num_devices, num_cores=None):
    """A Run whose mesh has only the names of its devices."""
    platform = {"TPU": "tpu", "NVI": "gpu"}.get(device_kind[:3], "cpu")
    device = SimpleNamespace(device_kind=device_kind, platform=platform)
    if num_cores is not None:
        device.num_cores = num_cores
    mesh = SimpleNamespace(size=num_devices, devices=np.full((num_devices, 1, 1), device))
    axes = {"data": num_devices, "fsdp": 1, "tensor": 1}
    return SimpleNamespace(
        config=RunConfig(model=MODEL, data=DataConfig(seq_len=T, global_batch_size=8)),
        pieces=SimpleNamespace(mesh=mesh, sizes=axes),
        rows=SimpleNamespace(notices=Notices()),
        plan=SimpleNamespace(num_steps=10, metrics_at=lambda step: {}, sources=SOURCES),
    )


@pytest.mark.parametrize(
    ("device_kind", "num_devices", "num_cores", "peak"),
    [
        (V5E, 4, 1, 4 * 197e12),
        ("TPU v4", 8, 2, 8 * 275e12),
        ("TPU v4", 8, 1, 4 * 275e12),
        ("TPU7x", 8, 1, 4 * 2307e12),
        ("NVIDIA A100-SXM4-80GB", 8, None, 8 * 156e12),  # float32 of this config, as TF32
        ("cpu", 8, None, None),
    ],
)
def test_the_peak_is_that_of_all_devices(device_kind, num_devices, num_cores, peak):
    assert run_hooks.run_peak_flops_per_s(run_on(device_kind, num_devices, num_cores)) == peak


def logged(tmp_path, monkeypatch, device_kind):
    """(screen, event) after a step of one second that did half of what four v5e could do at best."""
    screen, clock = io.StringIO(), iter([0.0, 1.0])
    monkeypatch.setattr("jaxlm.train.hooks.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    report = RunReport(
        tmp_path, num_steps=10, config={}, progress=Progress(10, file=screen, interactive=False)
    )
    log = run_hooks.make_log(run_on(device_kind, 4), SimpleNamespace(stall_s=0.0), report, None)
    num_tokens = 0.5 * 4 * 197e12 / flops_per_token(MODEL, T).total
    metrics = {"loss": np.float32(3.0), "num_tokens": np.float64(num_tokens), "num_bad_in_row": np.int32(0)}
    metrics["sound_gradients"] = np.ones(3, bool)
    with report:
        log(1, None, metrics)
    return screen.getvalue(), next(read_events(tmp_path / "events.jsonl"))


def test_mfu_is_shown_on_a_known_chip(tmp_path, monkeypatch):
    screen, event = logged(tmp_path, monkeypatch, V5E)
    assert "394 TFLOP/s  MFU 50.0%" in screen
    assert event["perf/mfu"] == pytest.approx(0.5)


def test_on_an_unknown_chip_flops_are_shown_instead(tmp_path, monkeypatch):
    screen, event = logged(tmp_path, monkeypatch, "cpu")
    assert "394 TFLOP/s" in screen
    assert "MFU" not in screen
    assert "perf/mfu" not in event


def test_the_first_screen_says_what_mfu_is_a_share_of():
    facts = run.start_facts(run_on(V5E, 4), 0, "1")
    assert facts["MFU"].startswith("share of 788 TFLOP/s; FLOPs a token: 6 M + 12 N H keys;")
    assert "the causal half" in facts["MFU"]
    assert facts["mesh"] == "data 4 x fsdp 1 x tensor 1 on 4 TPU v5 lite device(s)"
    assert "MFU" not in run.start_facts(run_on("cpu", 4), 0, "1")


def test_the_first_screen_says_which_attention_auto_is(monkeypatch):
    assert run.start_facts(run_on("cpu", 4), 0, "1")["attention"] == "chunked (auto)"
    assert run.start_facts(run_on(V5E, 4), 0, "1")["attention"] == "flash (auto)"
    monkeypatch.setattr(f"{__name__}.MODEL", dataclasses.replace(MODEL, head_dim=96))
    said = run.start_facts(run_on(V5E, 4), 0, "1")["attention"]
    assert said == "splash (auto; not flash: 96 channels a head, 12 and 12 heads)"


def test_the_first_screen_says_what_runs_the_products_of_experts(monkeypatch):
    assert "experts" not in run.start_facts(run_on(V5E, 4), 0, "1")
    monkeypatch.setattr(f"{__name__}.MODEL", sizes.size("mixtral-8x7b"))
    for device_kind, products in ("cpu", "blocks"), (V5E, "grouped"):
        made = run_on(device_kind, 4)
        made.pieces.sizes["expert"] = 1
        assert run.start_facts(made, 0, "1")["experts"] == f"2 of 8 for each token, products: {products}"


@pytest.mark.parametrize(
    ("device_kind", "num_cores", "num_chips"),
    [(V5E, 1, 8), ("TPU v4", 2, 8), ("TPU v4", 1, 4), ("TPU7x", 1, 4), ("TPU7x", None, 4), ("cpu", None, 8)],
)
def test_the_plan_is_logged_as_the_numbers_of_the_start_screen(device_kind, num_cores, num_chips):
    made = run_on(device_kind, 8, num_cores)
    plan = run_hooks.plan_numbers(made, 3)
    assert (plan["first_step"], plan["num_steps"], plan["num_devices"]) == (3, 10, 8)
    assert (plan["num_chips"], plan["device_kind"]) == (num_chips, device_kind)
    assert plan["num_positions"] == 10 * 8 * T
    assert plan["flops"] == plan["flops_per_token"] * 10 * 8 * T
    assert plan["peak_flops_per_s"] == run_hooks.run_peak_flops_per_s(made)
    assert plan["sources"] == {"web": {"tokens": 150_000, "epochs": 0.5}}
    said = run.start_facts(made, 3, "1")
    assert said["predicted"] == f"{plan['flops']:.3g} FLOPs, {plan['device_bytes'] / 2**30:.2f} GiB a device"
    assert f"3 to 10; {plan['num_positions']:,} tokens" in said["steps"]


@pytest.mark.parametrize(
    ("stats", "logged"),
    [
        ([{"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 7}], {"peak_device_bytes": 7}),
        ([{"bytes_in_use": 5}, None], {}),
    ],
)
def test_the_peak_of_memory_is_logged_where_devices_count_it(monkeypatch, stats, logged):
    devices, events = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats], []
    monkeypatch.setattr("jax.local_devices", lambda: devices)
    monkeypatch.setattr(run_hooks, "peak_process_bytes", lambda: 9)
    report = SimpleNamespace(event=lambda name, step=None, **fields: events.append((name, fields)))
    run_hooks.log_peak_memory(report)
    assert events == [("memory", logged | {"peak_process_bytes": 9})]


def test_the_peak_of_a_process_is_in_bytes():
    held = bytearray(300_000_000)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])  # so that every page is there
    assert 300e6 < run_hooks.peak_process_bytes() < 100e9
