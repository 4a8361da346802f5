"""Promises of jaxlm/plan/topology.py: slices that exist, and one clear line for those that do not."""

import math
import os
import subprocess
import sys

import pytest

from jaxlm.plan import topology
from jaxlm.plan.hardware import CHIPS
from jaxlm.types import UserError


@pytest.mark.parametrize(
    ("text", "num_slices", "chips", "devices", "hosts", "options"),
    [
        ("v5e:16x16", 1, 256, 256, 64, {}),
        ("v5e:16x16", 2, 512, 512, 128, {"num_slices": 2}),
        ("v6e:1x1", 1, 1, 1, 1, {"chips_per_host_bounds": (1, 1, 1)}),
        ("v5p:4x4x4", 1, 64, 64, 16, {}),
        ("v5p:2x2", 1, 4, 4, 1, {}),
        ("v5p:16x16x24", 1, 6144, 6144, 1536, {}),
        ("v4:12x12x24", 1, 3456, 3456, 864, {"chip_config_name": "megacore"}),
        ("tpu7x:4x4x4", 1, 64, 128, 16, {}),
        ("cpu:8", 1, 8, 8, 1, {}),
        ("cpu:1", 1, 1, 1, 1, {}),
    ],
)
def test_a_topology_counts_chips_devices_and_hosts(text, num_slices, chips, devices, hosts, options):
    found = topology.parse(text, num_slices)
    assert (found.num_chips, found.num_devices, found.num_hosts) == (chips, devices, hosts)
    assert found.libtpu_options == options
    assert found.devices_per_slice == devices // num_slices


def test_names_are_those_that_libtpu_takes():
    assert topology.parse("v5p:2x2").slice_name == "v5p:2x2x1"
    assert topology.parse("v5e:2x4x1").slice_name == "v5e:2x4"
    assert topology.parse("v5e:2x4", 2).name == "2 x v5e:2x4"


@pytest.mark.parametrize(
    ("text", "num_slices", "said"),
    [
        (None, 1, "--topology=CHIP:SHAPE is needed"),
        ("v5e:16x17", 1, "no such slice of v5e; nearest: v5e:16x16 (256 chips), v5e:8x16 (128 chips)"),
        ("v5e:4x2", 1, "nearest: v5e:2x4 (8 chips)"),
        ("v5p:8x4x4", 1, "nearest: v5p:4x4x8 (128 chips)"),
        ("v5p:16x24x24", 1, "nearest: v5p:16x16x24 (6,144 chips)"),
        ("v7:2x2", 1, "'v7' is no TPU; there are v4, v5e, v5p, v6e, tpu7x, and cpu for fake devices. Did you mean "
         "tpu7x:2x2x1?"),
        ("v5litepod-16", 1, "Did you mean v5e:4x4?"),
        ("V6E:2x4", 1, "Did you mean v6e:2x4?"),
        ("v5e", 1, "one of v5e:1x1, v5e:2x2, v5e:2x4, v5e:4x4, v5e:4x8, v5e:8x8, v5e:8x16, v5e:16x16."),
        ("v5e-256", 1, "must be v5e:SHAPE, nearest: v5e:16x16 (256 chips)"),
        ("v5e:256", 1, "must be v5e:SHAPE, nearest: v5e:16x16 (256 chips)"),
        ("v5p-128", 1, "nearest: v5p:4x4x4 (64 chips), v5p:2x4x4 (32 chips), v5p:4x4x8 (128 chips). v5p-128 counts "
         "TensorCores, two a chip."),
        ("v5e:0x4", 1, "no such slice"),
        ("v5e:-2x4", 1, "must be v5e:SHAPE"),
        ("v5e:2x4x", 1, "must be v5e:SHAPE"),
        ("v5e:2x4:twisted", 1, "must be v5e:SHAPE"),
        ("h100:8", 1, "h100 cannot be compiled for without the chip itself"),
        ("::", 1, "no TPU"),
        ("v5e:2x4", 0, "--num-slices=0 must be in [1, 256]"),
        ("v5e:2x4", 257, "--num-slices=257 must be in [1, 256]"),
        ("cpu", 1, "must be cpu:N"),
        ("cpu:0", 1, "from 1 to 1024"),
        ("cpu:2x4", 1, "must be cpu:N"),
        ("cpu:8", 2, "fake CPU devices have no slices"),
    ],
)  # fmt: skip
def test_a_slice_that_does_not_exist_is_one_line_with_the_nearest_choices(text, num_slices, said):
    with pytest.raises(UserError) as raised:
        topology.parse(text, num_slices)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("chip", topology.DIMS)
def test_every_number_of_chips_has_a_shape(chip):
    usual = list(topology.usual_shapes(chip))
    assert [math.prod(shape) for shape in usual] == list(CHIPS[chip].slices.counts)
    assert all(topology.parse(f"{chip}:{topology.shape_name(shape)}").shape == shape for shape in usual)


def test_the_shapes_of_v5p_are_those_of_its_page():
    """https://docs.cloud.google.com/tpu/docs/v5p, read 2026-11-26; 2x2x4 is from hardware.yaml."""
    listed = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24".split()
    assert [topology.shape_name(shape) for shape in topology.usual_shapes("v5p")] == listed


def test_libtpu_makes_every_usual_slice():
    """In a process of its own: this one has JAX look for CPUs, and libtpu says a lot."""
    pytest.importorskip("libtpu")
    code = (
        "from jax.experimental import topologies as t; from jaxlm.plan import topology as p\n"
        "for chip in p.DIMS:\n"
        "    for shape in p.usual_shapes(chip):\n"
        "        for num in (1, 2):\n"
        "            on = p.parse(f'{chip}:{p.shape_name(shape)}', num)\n"
        "            asked = {'topology_name': on.slice_name, **on.libtpu_options}\n"
        "            d = t.get_topology_desc(platform='tpu', **asked).devices\n"
        "            assert len(d) == on.num_devices, on\n"
        "            hosts = {(getattr(x, 'slice_index', 0), x.process_index) for x in d}\n"
        "            assert len(hosts) == on.num_hosts, on\n"
        "            assert d[0].device_kind in on.chip.device_kinds, on\n"
        "            assert d[0].num_cores == on.chip.cores_per_device, on\n"
    )
    environment = os.environ | {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
