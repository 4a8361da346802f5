"""Where a run fits: meshes divide model and batch, and the smallest slice is the smallest."""

import dataclasses
import math

import pytest

from jaxlm import run
from jaxlm.plan import placement
from jaxlm.plan.hardware import CHIPS

SIZES = (1, 4, 8, 16, 32, 64, 128, 256)


def config(*flags):
    return run.resolve(run.parse(list(flags)))


@pytest.fixture(scope="module")
def llama():
    return config("--config=pretrain_size:llama3-8b")


@pytest.mark.parametrize("num_devices", [1, 2, 8, 48, 256, 1024])
def test_a_mesh_fills_the_devices_and_divides_model_and_batch(llama, num_devices):
    for mesh in placement.meshes(llama, num_devices):
        assert math.prod(mesh.values()) == num_devices
        fixed = dataclasses.replace(llama, mesh=dataclasses.replace(llama.mesh, **mesh))
        assert run.resolve_mesh(fixed, num_devices) == mesh


def test_weights_are_split_as_far_as_they_go_before_anything_is_copied(llama):
    first = next(placement.meshes(llama, 64))
    assert first == {"data": 1, "fsdp": 64, "expert": 1, "sequence": 1, "tensor": 1}


def test_the_mesh_of_the_config_comes_first():
    gpt = config("--config=pretrain_gpt2_124m_v5e8", "--config.tokenizer.vocab_size=4096")
    assert next(placement.meshes(gpt, 8)) == {"data": 8, "fsdp": 1, "expert": 1, "sequence": 1, "tensor": 1}
    moe = config("--config=pretrain_size:mixtral-8x7b", "--config.mesh.expert=8")
    assert next(placement.meshes(moe, 64)) == {"data": 1, "fsdp": 8, "expert": 8, "sequence": 1, "tensor": 1}


def test_a_length_that_is_cut_stays_cut(llama):
    long = dataclasses.replace(llama, mesh=dataclasses.replace(llama.mesh, sequence=4))
    assert {mesh["sequence"] for mesh in placement.meshes(long, 64)} == {4}
    assert not placement.divides(long, {"data": 1, "fsdp": 1, "expert": 1, "sequence": 3, "tensor": 1})


def test_more_devices_than_rows_split_heads(llama):
    rows = llama.data.global_batch_size
    assert [mesh["tensor"] for mesh in placement.meshes(llama, 4 * rows)][0] == 4


def test_the_smallest_slice_fits_and_the_one_before_does_not(llama):
    found = placement.smallest(llama, CHIPS["v5e"], SIZES)
    assert found is not None
    assert found.fits
    below = SIZES[SIZES.index(found.num_chips) - 1]
    smaller = placement.best(llama, CHIPS["v5e"], below)
    assert smaller is not None
    assert not smaller.fits


def test_microbatches_rise_only_as_far_as_is_needed(llama):
    found = placement.smallest(llama, CHIPS["v5e"], SIZES)
    assert found is not None
    assert found.num_microbatches > llama.train.num_microbatches
    fewer = [n for n in placement.microbatches(llama, found.mesh) if n < found.num_microbatches]
    assert fewer
    for num in fewer:
        assert not placement.place(llama, found.chip, found.num_chips, found.mesh, num).fits


def test_a_model_too_large_for_all_slices_has_none():
    huge = config("--config=pretrain_size:gpt3-175b")
    assert placement.smallest(huge, CHIPS["v5e"], (1, 4, 8)) is None


def test_a_chip_of_two_devices_has_twice_the_devices(llama):
    found = placement.best(llama, CHIPS["tpu7x"], 4)
    assert found is not None
    assert found.num_devices == math.prod(found.mesh.values()) == 8
    assert found.limit_bytes < CHIPS["tpu7x"].hbm_bytes.value / 2
