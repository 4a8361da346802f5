"""Predictions beside what makers published."""

import pytest

from jaxlm.plan import published
from jaxlm.types import UserError

# (N, D, chip, chip-hours, MFU given, MFU implied), from the papers and cards that published.yaml names.
TRAININGS = {
    "Llama 2 7B": (6_738_415_616, 2.0e12, "a100-80gb", 184_320, (), 0.391),
    "Llama 2 70B": (68_976_648_192, 2.0e12, "a100-80gb", 1_720_320, (), 0.428),
    "Llama 3.1 8B": (8_030_261_248, 15e12, "h100", 1.46e6, (), 0.139),
    "Llama 3.1 70B": (70_553_706_496, 15e12, "h100", 7.0e6, (), 0.255),
    "Llama 3.1 405B": (405_853_388_800, 15.6e12, "h100", 30.84e6, (0.38, 0.43), 0.346),
    "DeepSeek-V3": (37e9, 14.8e12, "h800", 2.788e6, (), 0.331),
}


def test_trainings_are_as_published():
    trainings, _, _ = published.load()
    found = {t.name: (t.num_params, t.num_tokens, t.chip, t.chip_hours, t.mfu) for t in trainings}
    assert found == {name: row[:-1] for name, row in TRAININGS.items()}


@pytest.mark.parametrize("training", published.load()[0], ids=lambda t: t.name)
def test_published_hours_imply_an_mfu(training):
    assert training.implied_mfu == pytest.approx(TRAININGS[training.name][-1], abs=5e-4)


def test_llama_405b_is_predicted_within_a_quarter_at_the_mfu_its_paper_gives():
    [training] = [t for t in published.load()[0] if t.mfu]
    slow, fast = training.predicted_chip_hours
    assert slow == pytest.approx(28.07e6, rel=1e-3)
    assert fast == pytest.approx(24.80e6, rel=1e-3)
    assert 1.09 < training.chip_hours / slow < 1.11
    assert 1.23 < training.chip_hours / fast < 1.25


def test_gpt3s_flops_are_predicted_within_a_percent():
    _, of_flops, _ = published.load()
    assert len(of_flops) == 8
    for row in of_flops:
        assert row.predicted_flops == pytest.approx(row.flops, rel=0.01), row.model


def test_a_source_and_what_is_not_given_stand_below_the_table():
    hours, flops = published.report().tables
    for training in published.load()[0]:
        [note] = [note for note in hours.notes if note.startswith(f"{training.name}:")]
        assert training.url in note
        assert training.mfu or "no MFU" in note or "fp8" in note
    assert "2005.14165" in flops.notes[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model: llama2-7b\n",
            "model: llama2-7b\n    params: 7e9\n",
            r"trainings\[0\] .Llama 2 7B.: has to have model or",
        ),
        ("chip: a100-80gb", "chip: a100", "chip='a100' is not one of"),
        ("mfu: [0.38, 0.43]", "mfu: [38, 43]", "mfu=38 has to be"),
        ("chip_hours: 184320", "chip_hours: 0", "chip_hours=0 has to be"),
        ("gpt3-13b: 2.31e22", "gpt3-13b: much", "flops.gpt3-13b='much' has to be a number"),
    ],
)
def test_a_broken_row_names_file_row_and_key(tmp_path, old, new, message):
    from jaxlm.plan.published import _TABLE

    text = _TABLE.read_text()
    assert old in text
    file = tmp_path / "published.yaml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        published.load(file)
    assert str(file) in str(caught.value)
