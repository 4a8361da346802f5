"""How runs scale: which slices and meshes, when nothing fits or divides, and what is said to bound it."""

import math

import pytest

from jaxlm import run
from jaxlm.cli._plan_run import completed
from jaxlm.plan import pods
from jaxlm.plan.hardware import CHIPS
from jaxlm.types import UserError


@pytest.fixture(scope="module")
def llama():
    return completed(run.resolve(run.parse(["--config=pretrain_llama31_8b_v6e256"])))[0]


def scale(run, counts, mode, chip="v6e"):
    return pods.scale(run, CHIPS[chip], counts, 4.0, mode=mode, flops_per_token=5e10)


def test_beyond_the_largest_slice_there_are_several_of_it():
    on = pods.slices_of(CHIPS["v6e"], 2048)
    assert (on.slice_name, on.num_slices, on.num_devices) == ("v6e:16x16", 8, 2048)
    assert pods.slices_of(CHIPS["v5p"], 6144).shape == (16, 16, 24)


@pytest.mark.parametrize(
    ("chip", "num", "said"),
    [
        ("v6e", 300, "Nearest: 256 or 512"),
        ("v5p", 100, "Nearest: 64 or 6,144"),
        ("tpu7x", 18432, "is not known"),
    ],
)
def test_a_number_of_chips_that_nobody_can_have_is_refused(chip, num, said):
    with pytest.raises(UserError, match=said):
        pods.slices_of(CHIPS[chip], num)


def test_sizes_end_where_they_were_asked_to():
    assert pods.chip_counts(CHIPS["v6e"], 16, 6144) == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 6144]
    assert pods.chip_counts(CHIPS["v6e"], 1024, 2048) == [1024, 2048]
    assert pods.chip_counts(CHIPS["v5p"], 512, 6144) == [512, 1024, 2048, 4096, 6144]


def test_meshes_fill_the_devices_with_the_slices_outermost(llama):
    on = pods.slices_of(CHIPS["v6e"], 1024)
    found = [*pods.meshes(llama, on)]
    assert found[0] == {**dict.fromkeys(llama.mesh.sizes, 1), "data": 4, "fsdp": 256}
    for mesh in found:
        assert math.prod(mesh.values()) == 1024
        assert mesh["data"] % 4 == 0
        assert mesh["tensor"] <= 8


def test_weak_scaling_over_slices_keeps_the_speed_of_a_chip(llama):
    small, large = scale(llama, [256, 4096], "weak")
    assert (small.rows, large.rows) == (1024, 16384)
    assert large.tokens_per_s_per_chip == pytest.approx(small.tokens_per_s_per_chip, rel=0.01)
    assert large.bound == "compute"


def test_strong_scaling_ends_in_the_network(llama):
    points = scale(llama, [256, 512, 1024, 2048, 4096, 6144], "strong")
    shares = [one.efficiency for one in points]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.7
    assert points[0].bound == "compute"
    assert {one.bound for one in points[3:]} <= {"ICI", "HBM"}
    assert all(
        one.rows <= 1024 and one.rows % (one.way.mesh["data"] * one.way.mesh["fsdp"]) == 0 for one in points
    )


def test_a_batch_of_fewer_rows_than_chips_is_too_small(llama):
    tiny = pods.with_rows(llama, 64)
    (point,) = scale(tiny, [4096], "strong")
    assert (point.way, point.bound) == (None, pods.TOO_SMALL)


def test_what_is_too_large_does_not_fit():
    large = completed(run.resolve(run.parse(["--config=pretrain_llama31_70b_v6e256"])))[0]
    points = pods.scale(large, CHIPS["v6e"], [16, 256], 1.0, mode="weak", flops_per_token=5e11)
    assert [one.bound for one in points] == [pods.NO_FIT, "compute"]
    assert points[1].way.memory.total < 33_554_432_000


def test_what_does_not_fit_as_it_is_keeps_nothing_or_comes_in_parts(llama):
    (point,) = scale(llama, [16], "strong")
    assert point.way.remat == "full"
    assert point.way.num_microbatches > 1
    (roomy,) = scale(llama, [256], "strong")
    assert (roomy.way.remat, roomy.way.num_microbatches) == ("save_attention", 1)
