"""Names of accelerators mean the machines that Google Cloud means by them; what is no name gets the nearest."""

import math

import pytest

from jaxlm.launch.accelerators import known_names, parse, read_names
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.topology import DIMS, usual_shapes
from jaxlm.types import UserError


@pytest.mark.parametrize(
    ("name", "topology", "slices", "said"),
    [
        ("v5e-256", None, 1, "v5e-256 (16x16): 256 chips in 64 machines v5litepod-256 ct5lp-hightpu-4t"),
        ("v5litepod-16", None, 1, "v5e-16 (4x4): 16 chips in 4 machines v5litepod-16 ct5lp-hightpu-4t"),
        ("v5e-8", None, 1, "v5e-8 (2x4): 8 chips in 1 machine v5litepod-8 ct5lp-hightpu-8t"),
        ("v6e-1", None, 1, "v6e-1 (1x1): 1 chip in 1 machine v6e-1 ct6e-standard-1t"),
        ("v6e-256", None, 2, "2 x v6e-256 (16x16): 512 chips in 128 machines v6e-256 ct6e-standard-4t"),
        ("v5p-128", None, 1, "v5p-128 (4x4x4): 64 chips in 16 machines v5p-128 ct5p-hightpu-4t"),
        ("v5p:4x4x12", None, 1, "v5p:4x4x12 (4x4x12): 192 chips in 48 machines v5p-384 ct5p-hightpu-4t"),
        ("v5p-512", "4x8x8", 1, "v5p-512 (4x8x8): 256 chips in 64 machines v5p-512 ct5p-hightpu-4t"),
        ("v5e:16x16", None, 1, "v5e-256 (16x16): 256 chips in 64 machines v5litepod-256 ct5lp-hightpu-4t"),
        ("v4-8", None, 1, "v4-8 (2x2x1): 4 chips in 1 machine v4-8 ct4p-hightpu-4t"),
        ("tpu7x-128", None, 1, "tpu7x-128 (4x4x4): 64 chips in 16 machines None tpu7x-standard-4t"),
        ("h100x16", None, 1, "h100x16: 16 chips in 2 machines None a3-highgpu-8g"),
        ("a100-40gb-4", None, 1, "a100-40gbx4: 4 chips in 1 machine None a2-highgpu-4g"),
        ("h100:8", None, 1, "h100x8: 8 chips in 1 machine None a3-highgpu-8g"),
    ],
)
def test_a_name_means_its_machines(name, topology, slices, said):
    machines = parse(name, topology, slices)
    assert f"{machines} {machines.accelerator_type} {machines.machine}" == said
    assert parse(machines.name, None, slices) == machines


@pytest.mark.parametrize(
    ("name", "topology", "slices", "rule"),
    [
        ("v5e-100", None, 1, "no such slice; nearest: v5e-128, v5e-64, v5e-256."),
        ("v5p-100", None, 1, "nearest: v5p-128, v5p-64, v5p-256."),
        ("v7e-8", None, 1, "did you mean v6e-8, v6e-4, v6e-16?"),
        ("trillium-8", None, 1, "did you mean v6e-8, v6e-4, v6e-16?"),
        ("tpu", None, 1, "is none that is known|did you mean tpu7x"),
        ("h100x12", None, 1, "nearest: h100x16, h100x8"),
        ("h100", None, 1, "did you mean h100x"),
        ("H100X8", None, 1, "did you mean h100x"),
        ("v5e-256", "4x4", 1, "topology=4x4 has 16: leave topology out, or write accelerator=v5e-16"),
        ("v5p-128", "4x4x8", 1, "TensorCores, two a chip, but topology=4x4x8 has 256"),
        ("v5e:16x16", "4x4", 1, "name two shapes"),
        ("v5e-16", "3x5", 1, "v5e has no such slice; nearest: v5e-16, v5e-8, v5e-32"),
        ("v5e-16", "big", 1, "must read like 1x1"),
        ("v5e-16", None, 0, "slices=0 must be in"),
        ("h100x16", None, 2, "have no topology and no slices"),
        ("v5e-16; rm -rf ~", None, 1, "v5e-16; rm"),
        ("", None, 1, "is none that is known"),
    ],
)  # fmt: skip
def test_what_is_no_name_gets_the_nearest(name, topology, slices, rule):
    with pytest.raises(UserError, match=rule) as raised:
        parse(name, topology, slices)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("chip", DIMS)
def test_every_slice_that_can_be_rented_divides_into_machines_of_a_known_type(chip):
    for shape in usual_shapes(chip):
        machines = parse(f"{chip}-{math.prod(shape) * CHIPS[chip].num_cores}")
        assert machines.shape == shape
        assert machines.hosts_per_slice * machines.chips_per_host == math.prod(shape)
        assert machines.machine
        assert machines.names.gke


def test_a_chip_that_no_platform_names_can_still_be_counted():
    assert parse("h100-pciex8").names == type(parse("h100x8").names)()
    assert known_names().keys() == CHIPS.keys()


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ("v5e: {source: a, gkee: b}", "'gkee' is not one of .*did you mean 'gke'"),
        ("v5e: {source: other}", "source 'other' is not one of a"),
        ("v9: {source: a}", "tpus.v9 is no chip of that kind"),
        ("h100: {source: a}", "tpus.h100 is no chip of that kind"),
    ],
)
def test_a_broken_table_is_named(tmp_path, row, rule):
    path = tmp_path / "platforms.yaml"
    path.write_text(
        f"sources: {{a: {{url: 'https://a.b', date: 2026-11-26}}}}\ntpus:\n  {row}\ngpus: {{h100: {{source: a}}}}\n"
    )
    with pytest.raises(UserError, match=rule):
        read_names(path)
