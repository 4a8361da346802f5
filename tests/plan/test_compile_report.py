"""Promises of the report of a compiled step: whether it fits and what to change, times as ranges, money."""

import dataclasses
import datetime
import io
import json

import pytest

from jaxlm.data.config import DataConfig
from jaxlm.models import sizes
from jaxlm.models.config import ModelConfig
from jaxlm.parallel.config import MeshConfig
from jaxlm.plan import memory, placement, prices, topology
from jaxlm.plan.compile_report import compile_report
from jaxlm.plan.compiled import DeviceMemory, Facts, Pricing
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.report import flops, print_report, to_json
from jaxlm.plan.step_cost import Collective, Links, StepCost, StepTime
from jaxlm.plan.step_products import products
from jaxlm.plan.what_fits import changes, more_fsdp, stronger
from jaxlm.runconfig import RunConfig
from jaxlm.train.config import TrainConfig
from jaxlm.types import UserError

ON = topology.parse("v5e:2x4")
LIMIT = 16_911_433_728
MESH = {"data": 8, "fsdp": 1, "expert": 1, "tensor": 1}


def config(*, remat="none", rows=64, size="gpt3-125m", mesh=MESH, seq_len=512):
    return dataclasses.replace(
        RunConfig(),
        model=dataclasses.replace(sizes.size(size), dtype="bfloat16", remat=remat, attention="dense"),
        data=DataConfig(seq_len=seq_len, global_batch_size=rows),
        mesh=MeshConfig(**mesh),
        train=TrainConfig(num_steps=1000),
    )


STEP = StepCost(
    flops=3e13,
    matmul_cycles=1e8,
    cycles=3e8,
    hbm_bytes=1e11,
    kernel_flops=1e13,
    kernel_bytes=1e9,
    kernels={"attend": 12.0},
    uncosted={"Mystery custom-call.7": 3.0, "Mystery custom-call.8": 1.0},
    compute_s=0.15,
    memory_s=0.05,
    no_flops_memory_s=0.02,
    waited_s=0.0,
    kernel_s=0.01,
    host_bytes=0.0,
    links=Links(3.75e9, 1.5e9),
    as_written=Links(3.75e9, 1.5e9),
    collectives=(
        Collective("all-gather", True, 24.0, 2e9, 1.75e9, 1.75e9, 0.0, 1.75e9),
        Collective("all-reduce", False, 1.0, 1e9, 2e9, 0.5e9, 1e9, 2e9),
    ),
    loops=(),
    unknown=("trip count of body.7: counted once",),
)
TIME = StepTime(0.2, 0.3, 0.4, compute_s=0.15, hbm_s=0.05, wire_s=0.02, exposed_wire_s=0.01, bound="compute")
PRICING = Pricing(prices.load(), None, "on-demand", None, datetime.date(2026, 11, 26))


def facts(**changed):
    given = dict(
        name="mine",
        on=ON,
        mesh=MESH,
        kernels={"attention": "dense"},
        memory=DeviceMemory(total_bytes=10**10, argument_bytes=2 * 10**9),
        argument_parts_bytes={"parameters": 5 * 10**8, "optimizer": 10**9, "batch": 10**6},
        step=STEP,
        time=TIME,
        seconds={"import": 1.0, "lower": 2.0, "compile": 3.0},
        versions={"jax": "0", "libtpu": "0"},
        stablehlo_sha256="0" * 64,
    )
    return Facts(**(given | changed))


def text_of(report):
    out = io.StringIO()
    print_report(report, out)
    assert max(map(len, out.getvalue().splitlines())) <= 100
    return " ".join(out.getvalue().split())


def test_a_step_that_fits_says_how_much_is_left_and_how_fast_it_may_be():
    report = compile_report(config(), facts(), PRICING)
    text = text_of(report)
    assert "fits, left 6.91 GB 40.9%" in text
    assert "layout, counters 0.50 GB" in text
    assert "temporaries 8.00 GB" in text
    # 64 x 512 tokens in 0.4 s on 8 chips.
    assert "cycles 0.4 0.88-1.07 0.352-0.428 s 10,240" in text
    assert "roofline 0.2 1.07-1.71 0.214-0.342 s 20,480" in text
    assert "all-gather in a loop 24 2.00 GB 1.75 GB 100%" in text
    assert "all-reduce once 1 1.00 GB 2.00 GB 25%" in text
    assert "Not counted, since nobody says what it costs: Mystery (x 4)" in text
    assert "trip count of body.7: counted once" in text
    assert "what to change" not in text
    found = json.loads(to_json(report))
    per_token = sum(report.data["flops_per_token"][part] for part in ("weights", "attention"))
    assert found["step"]["model_flops"] == pytest.approx(per_token * 64 * 512 / 8)
    assert found["speeds"][2]["mfu"] == pytest.approx(per_token * 64 * 512 / 8 / 0.4 / 197e12)
    assert found["run"]["slow"]["chip_hours"] == pytest.approx(8 * 1000 * 0.428 / 3600)
    assert found["run"]["fast"]["compute_usd"] == pytest.approx(1.2 * 8 * 1000 * 0.352 / 3600)


def test_the_dtype_of_the_model_is_that_of_the_peak_and_tpu7x_counts_two_devices_a_chip():
    on = topology.parse("tpu7x:2x2x1")
    report = compile_report(config(), facts(on=on, step=STEP._replace(collectives=())), PRICING)
    model = report.data["step"]["model_flops"]
    assert report.data["speeds"][0]["mfu"] == pytest.approx(model / 0.2 / (2307e12 / 2))
    assert report.data["speeds"][0]["tokens_per_s_per_chip"] == pytest.approx(64 * 512 / 0.2 / 4)
    text = text_of(report)
    assert "none - -" in text
    assert "No price of tpu7x is known: give one with --price=USD" in text
    assert report.data["run"]["fast"]["compute_usd"] is None


def test_two_slices_show_what_goes_between_them():
    report = compile_report(config(), facts(on=topology.parse("v5e:2x2", 2)), PRICING)
    text = text_of(report)
    assert "across slices" in text
    assert "What goes from slice to slice is counted, and not timed" in text


def test_a_program_that_computes_more_than_it_was_asked_to_is_a_warning():
    run = config(remat="full")
    planned = products(run, MESH).flops
    asked = compile_report(run, facts(step=STEP._replace(flops=planned)), PRICING)
    assert asked.data["step"]["planned_flops"] == planned
    assert asked.data["step"]["executed_share"] > 1.2
    assert (
        f"with what model.remat repeats {flops(planned)} {asked.data['step']['executed_share']:.2f}"
        in text_of(asked)
    )
    more = compile_report(run, facts(step=STEP._replace(flops=1.07 * planned)), PRICING)
    (warning,) = set(more.warnings) - set(asked.warnings)
    assert "computes 7.0% more than model.remat='full' asks for" in warning


def test_of_fake_devices_nothing_is_said_of_what_remat_repeats():
    report = compile_report(config(), facts(on=topology.parse("cpu:8"), time=None), PRICING)
    assert report.data["step"]["planned_flops"] is None
    assert "model.remat repeats" not in text_of(report)


def test_a_step_that_does_not_fit_says_what_to_change():
    run = config(rows=256)
    over = DeviceMemory(
        total_bytes=20 * 10**9, argument_bytes=2 * 10**9, refused="RESOURCE_EXHAUSTED: so much"
    )
    report = compile_report(run, facts(memory=over, step=None, time=None), PRICING)
    text = text_of(report)
    assert "DOES NOT FIT, too much 3.09 GB 18.3%" in text
    assert "warning: it does not fit: 20.0 GB of 16.9 GB" in text
    assert "The compiler: RESOURCE_EXHAUSTED: so much" in text
    assert "--config.train.num_microbatches=2" in text
    assert "--config.model.remat=minimal" in text
    assert report.data["memory"]["fits"] is False
    for change in report.data["memory"]["changes"]:
        assert change["predicted_bytes"] <= 0.95 * LIMIT


def predicted(run, mesh, on=ON, **model):
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, **model))
    return memory.predict(run, mesh, on.num_devices, platform="tpu").total


def test_each_change_is_the_least_that_is_predicted_to_fit():
    run = config(rows=128, size="gpt3-350m")
    now = predicted(run, MESH)
    assert now > LIMIT
    found = {one.flags: one.predicted_bytes for one in changes(run, MESH, ON, now)}
    assert found["--config.model.remat=minimal"] == predicted(run, MESH, remat="minimal")
    (parts,) = (flags for flags in found if "num_microbatches" in flags)
    num = int(parts.partition("=")[2])
    fewer = dataclasses.replace(run, train=dataclasses.replace(run.train, num_microbatches=num // 2))
    assert found[parts] <= 0.95 * LIMIT < predicted(fewer, MESH)


def test_more_fsdp_is_a_change_where_weights_are_what_is_too_large():
    run = config(rows=8, size="gpt3-1.3b", remat="full")
    assert predicted(run, MESH) > LIMIT
    found = {one.flags: one.predicted_bytes for one in changes(run, MESH, ON, predicted(run, MESH))}
    assert list(found) == ["--config.mesh.data=4 --config.mesh.fsdp=2"]


def test_data_stays_a_multiple_of_the_slices():
    run, on = config(rows=8, size="gpt3-2.7b", remat="full"), topology.parse("v5e:2x2", 2)
    found = changes(run, MESH, on, predicted(run, MESH, on))
    assert [one.flags for one in found] == ["--config.mesh.data=2 --config.mesh.fsdp=4"]
    assert [mesh["data"] for mesh in more_fsdp(run, MESH, 2)] == [4, 2]
    assert [mesh["data"] for mesh in more_fsdp(run, MESH, 1)] == [4, 2, 1]


def test_what_the_compiler_needs_beyond_the_prediction_is_allowed_for():
    run = config(rows=128, size="gpt3-350m")
    now = predicted(run, MESH)
    honest, wary = (dict(changes(run, MESH, ON, factor * now)) for factor in (1, 1.4))

    def num(found):
        return max(int(flags.partition("=")[2]) for flags in found if "num_microbatches" in flags)

    assert num(wary) > num(honest)


def test_where_one_change_is_not_enough_several_are_named_and_then_a_larger_slice():
    run = config(rows=64, size="gpt3-2.7b", seq_len=2048)
    (one,) = changes(run, MESH, ON, predicted(run, MESH))
    assert "--config.mesh.fsdp=" in one.flags
    assert "--config.model.remat=" in one.flags or "num_microbatches" in one.flags
    run = config(rows=256, size="gpt3-13b", remat="full", seq_len=2048, mesh=MESH | {"data": 1, "fsdp": -1})
    mesh = MESH | {"data": 1, "fsdp": 8}
    (one,) = changes(run, mesh, ON, predicted(run, mesh))
    assert one.flags.startswith("--topology=v5e:")
    found = topology.parse(one.flags.split()[0].partition("=")[2])
    assert found.num_chips > 8
    assert placement.best(run, CHIPS["v5e"], found.num_chips).memory.total == one.predicted_bytes


def test_a_price_that_is_given_goes_first_and_a_provider_that_is_none_is_refused():
    assert PRICING._replace(price_usd=3.0).of(CHIPS["tpu7x"]).usd == 3.0
    assert PRICING.of(CHIPS["tpu7x"]) is None
    with pytest.raises(UserError, match="--provider='Goggle Cloud' .* did you mean 'Google Cloud'"):
        PRICING._replace(provider="Goggle Cloud").of(CHIPS["v5e"])


def test_what_lies_on_the_host_is_shown_and_takes_nothing_of_the_device():
    memory = DeviceMemory(total_bytes=10**10, argument_bytes=2 * 10**9, host_bytes=3 * 10**9)
    report = compile_report(config(), facts(memory=memory), PRICING)
    text = text_of(report)
    assert "on the host 3.00 GB" in text
    assert "fits, left 6.91 GB 40.9%" in text
    assert json.loads(to_json(report))["memory"]["host_bytes"] == 3 * 10**9
    assert "on the host" not in text_of(compile_report(config(), facts(), PRICING))


@pytest.mark.parametrize(
    ("remat", "less"),
    [
        ("none", ["minimal", "save_dots", "save_attention", "full"]),
        ("save_attention", ["full"]),
        ("full", []),
        ("q,k,v,attention", ["save_attention", "full"]),
        ("attention", ["full"]),
        ("q,gate", ["full"]),
    ],
)
def test_what_keeps_less_than_a_policy_or_a_list_of_names(remat, less):
    assert stronger(ModelConfig(remat=remat, activation="swiglu")) == less
