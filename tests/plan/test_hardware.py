"""Chips: found by the names JAX gives them, per device and not per chip, every number with where it was read."""

import datetime
import subprocess
import sys

import pytest

from jaxlm.plan import hardware
from jaxlm.plan.hardware import CHIPS, Figure, find_chip, peak_flops_per_s
from jaxlm.types import UserError


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
        figures += [chip.usable_hbm_bytes, chip.flops_per_cycle]
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


@pytest.mark.parametrize(
    ("name", "clock_hz"),
    # Peak / FLOP per cycle of a core, of which v4 and v5p have two: 197e12 / (4 x 2 x 128 x 128) and so on.
    [("v4", 1.049e9), ("v5e", 1.503e9), ("v5p", 1.751e9), ("v6e", 1.751e9), ("tpu7x", 2.2e9)],
)
def test_peak_and_matrix_units_give_the_clock_of_a_device(name, clock_hz):
    assert CHIPS[name].device().clock_hz == pytest.approx(clock_hz, rel=1e-3)
    assert CHIPS[name].device(num_cores=1).clock_hz == CHIPS[name].device().clock_hz


def test_the_clock_of_a_gpu_is_not_known():
    assert CHIPS["h100"].device().clock_hz is None


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


def test_the_table_is_read_when_it_is_asked_for_and_not_before():
    """A training run imports this module, and may never look a chip up."""
    code = (
        "import sys; from jaxlm.plan import hardware; assert 'yaml' not in sys.modules; "
        "assert hardware.find_chip('TPU v4'); assert 'yaml' in sys.modules; print('lazy')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "lazy\n"


def test_a_v100_multiplies_float16_and_has_no_other_matrix_units():
    assert CHIPS["v100"].training_dtype == "float16"
    assert CHIPS["v100"].training_flops_per_s == 125e12
    assert peak_flops_per_s("Tesla V100-SXM2-16GB", "bfloat16", 1) is None
    assert peak_flops_per_s("Tesla V100-SXM2-16GB", "float32", 1) == 15.67e12
    assert {CHIPS[name].training_dtype for name in CHIPS if not name.startswith("v100")} == {"bfloat16"}


def test_an_h800_is_an_h100_with_slower_links():
    h100, h800 = CHIPS["h100"], CHIPS["h800"]
    assert h800.peak_flops_per_s == h100.peak_flops_per_s
    assert h800.link_bytes_per_s.value == 200e9 < h100.link_bytes_per_s.value


def test_power_is_what_is_public():
    watts = {name: chip.power_w.value for name, chip in CHIPS.items() if chip.power_w}
    assert watts == {
        "v4": 170, "v100": 300, "v100-32gb": 300, "a100-40gb": 400, "a100-80gb": 400, "a100-pcie-40gb": 250,
        "h100": 700, "h100-pcie": 350, "h200": 700, "b200": 1000,
    }  # fmt: skip


def test_slices_are_those_one_can_have():
    v5e, v5p, h100 = (CHIPS[name].slices for name in ("v5e", "v5p", "h100"))
    assert v5e.counts == (1, 4, 8, 16, 32, 64, 128, 256)
    assert [CHIPS[name].slices.counts[-1] for name in ("v4", "v5p", "v6e", "tpu7x")] == [
        4096,
        6144,
        256,
        9216,
    ]
    assert (v5e.at_least(9), v5e.at_least(256), v5e.at_least(257)) == (16, 256, None)
    assert (h100.at_least(3), h100.at_least(9), h100.at_least(16)) == (4, 16, 16)
    assert (h100.at_most(7), h100.at_most(8), h100.at_most(23), v5p.at_most(3)) == (4, 8, 16, None)
    assert v5e.has(4)
    assert not v5e.has(2)
    assert h100.has(24)
    assert not h100.has(12)
    for chip in CHIPS.values():
        assert all(
            chip.slices.has(count) and chip.slices.at_least(count) == count for count in chip.slices.counts
        )


def test_an_unknown_chip_names_the_nearest():
    with pytest.raises(UserError, match="chip='h10' is not one of .*did you mean 'h100'"):
        hardware.chip_named("h10")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "bfloat16: {value: 275.0e+12",
            "bfloat16: {value: fast",
            "v4: peak_flops_per_s.bfloat16.value='fast' has to be",
        ),
        ("hbm_bytes: {value: 34359738368", "hbm_bytes: {value: -1", "v4: hbm_bytes.value=-1 has to be"),
        (
            "link_bytes_per_s: {value: 270.0e+9, source: scaling_book}",
            "link: 3",
            "v4: key='link' is not one of",
        ),
        ("source: v4_power", "source: v4_pwoer", "v4: power_w.source='v4_pwoer' .*did you mean 'v4_power'"),
        (
            "cores_per_device: 2",
            "cores_per_device: 3",
            "v4: num_cores=2 has to be a multiple of cores_per_device=3",
        ),
        ("value: [4, 8, 16, 32", "value: [8, 4, 16, 32", "v4: slices.value=.8, 4, .* has to ascend"),
        ('device_kinds: ["TPU v4"]', "device_kinds: []", "v4: device_kinds has to be a list of rows"),
        (
            "      float16: {value: 125.0e+12, source: volta}\n",
            "",
            "v100: peak_flops_per_s has neither of bfloat16",
        ),
        ("date: 2026-11-24", "date: today", "sources.v4.date='today' has to be a day"),
        ("chips:", "chps:", "key='chps' is not one of sources, chips, prices; did you mean 'chips'"),
    ],
)
def test_a_broken_row_names_file_chip_and_key(tmp_path, old, new, message):
    text = hardware._TABLE.read_text()
    assert old in text
    file = tmp_path / "hardware.yaml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        hardware.read_chips(file)
    assert str(file) in str(caught.value)
