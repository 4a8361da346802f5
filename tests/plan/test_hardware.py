"""Chips: found by the names JAX gives them, per device and not per chip, every number with where it was read."""

import datetime

import pytest

from jaxlm.plan import hardware
from jaxlm.plan.hardware import CHIPS, Figure, find_chip, peak_flops_per_s


@pytest.mark.parametrize(
    ("device_kind", "name", "bfloat16"),
    [
        # What libtpu 0.0.42.1 calls the devices of its topologies v4, v5e, v5p, v6e and tpu7x.
        ("TPU v4", "v4", 275e12),
        ("TPU v5 lite", "v5e", 197e12),
        ("TPU v5", "v5p", 459e12),
        ("TPU v6 lite", "v6e", 918e12),
        ("TPU7x", "tpu7x", 2307e12 / 2),  # a chip is two devices
        # Other names that jax/_src/pallas/mosaic/tpu_info.py knows.
        ("TPU v5e", "v5e", 197e12),
        ("TPU v5p", "v5p", 459e12),
        ("TPU v6e", "v6e", 918e12),
        # NVIDIA's, as its driver gives them.
        ("NVIDIA A100-SXM4-40GB", "a100-40gb", 312e12),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb", 312e12),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb", 312e12),
        ("NVIDIA H100 80GB HBM3", "h100", 989.4e12),
        ("NVIDIA H100 PCIe", "h100-pcie", 756e12),
        ("NVIDIA H200", "h200", 989.4e12),
        ("NVIDIA B200", "b200", 2250e12),
    ],
)
def test_a_device_is_found_by_the_name_jax_gives_it(device_kind, name, bfloat16):
    chip = find_chip(device_kind)
    assert chip is CHIPS[name]
    assert chip.device().peak_flops_per_s["bfloat16"] == bfloat16
    assert peak_flops_per_s(device_kind, "bfloat16", 1) == bfloat16


@pytest.mark.parametrize("kind", ["cpu", "", "TPU v2", "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "NVIDIA A10"])
def test_what_is_not_known_is_not_guessed(kind):
    assert find_chip(kind) is None
    assert peak_flops_per_s(kind, "bfloat16", 8) is None


def test_names_and_kinds_are_unique():
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(set(kinds)) == len(kinds)
    assert all(name == chip.name for name, chip in CHIPS.items())


@pytest.mark.parametrize("name", CHIPS)
def test_every_number_says_where_it_was_read_and_when(name):
    chip = CHIPS[name]
    figures = [chip.hbm_bytes, chip.hbm_bytes_per_s, chip.link_bytes_per_s, *chip.peak_flops_per_s.values()]
    if chip.device_kinds[0].startswith("TPU"):
        figures.append(chip.usable_hbm_bytes)
    for figure in figures:
        assert isinstance(figure, Figure)
        assert figure.value > 0
        assert figure.source.url.startswith("https://")
        assert datetime.date(2026, 1, 1) < datetime.date.fromisoformat(figure.source.date)


def test_a_megacore_is_one_device_and_split_it_is_two():
    """libtpu gives a v4 chip as one device of two cores or, `chip_config_name="default"`, as two of one."""
    v4 = CHIPS["v4"]
    whole, half = v4.device(num_cores=2), v4.device(num_cores=1)
    assert v4.device() == whole
    assert v4.devices_per_chip == CHIPS["v5p"].devices_per_chip == 1
    assert whole.peak_flops_per_s["bfloat16"] == 275e12 == 2 * half.peak_flops_per_s["bfloat16"]
    assert peak_flops_per_s("TPU v4", "bfloat16", 8, num_cores=1) == 4 * 275e12
    assert (whole.hbm_bytes, half.hbm_bytes) == (32 * hardware.GIB, 16 * hardware.GIB)


def test_tpu7x_is_two_devices():
    chip, device = CHIPS["tpu7x"], CHIPS["tpu7x"].device()
    assert chip.devices_per_chip == 2
    assert device == chip.device(num_cores=1)
    for published, of_a_device in (
        (chip.hbm_bytes, device.hbm_bytes),
        (chip.usable_hbm_bytes, device.usable_hbm_bytes),
        (chip.hbm_bytes_per_s, device.hbm_bytes_per_s),
        (chip.link_bytes_per_s, device.link_bytes_per_s),
    ):
        assert published.value == 2 * of_a_device
    assert peak_flops_per_s("TPU7x", "bfloat16", 128) == 64 * 2307e12


def test_the_peak_is_that_of_the_products_jax_computes():
    """float32 is multiplied as TF32 on GPUs and as bfloat16 on TPUs; never at the rate of the scalar units."""
    assert peak_flops_per_s("NVIDIA A100-SXM4-80GB", "float32", 1) == 156e12
    assert peak_flops_per_s("TPU v5 lite", "float32", 1) == 197e12
    assert peak_flops_per_s("TPU v4", "fp8", 1) is None


@pytest.mark.parametrize("name", CHIPS)
def test_figures_are_of_one_order(name):
    """Against slips of a factor of 1000 or 8 (bits): a chip does 100 to 800 operations for a byte that it reads."""
    device = CHIPS[name].device()
    peak = device.peak_flops_per_s[CHIPS[name].training_dtype]
    assert 100 < peak / device.hbm_bytes_per_s < 800
    assert 8 < device.hbm_bytes_per_s / 1e9 / (device.hbm_bytes / 1e9) < 80
    assert 3 < device.hbm_bytes_per_s / device.link_bytes_per_s < 80
    assert device.usable_hbm_bytes is None or 0.95 < device.usable_hbm_bytes / device.hbm_bytes < 1.01
