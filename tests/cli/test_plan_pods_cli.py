"""Promises of `jaxlm plan pods`: a table of 100 columns, the same as JSON and as a plot, and clear mistakes."""

import json

import pytest

LLAMA = "--config=pretrain_llama31_8b_v6e256"


def test_weak_and_strong_are_tables_of_100_columns(jaxlm):
    code, out, err = jaxlm("plan", "pods", LLAMA)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    assert "weak scaling" in out
    assert "strong scaling" in out
    assert "6,144" in out


def test_a_batch_that_trains_no_better_is_warned_of(jaxlm):
    few, many = (
        json.loads(jaxlm("plan", "pods", LLAMA, f"--chips={chips}", "--json")[1])["warnings"]
        for chips in (32, 2048)
    )
    assert few == []
    assert many[0].startswith("from 2,048 chips on, the batch of weak scaling is beyond the critical size")


def test_json_has_every_point_with_its_mesh(jaxlm):
    code, out, _ = jaxlm("plan", "pods", LLAMA, "--chips=64,256,1024", "--strong", "--json")
    found = json.loads(out)
    assert code == 0
    assert "weak" not in found
    assert [one["num_chips"] for one in found["strong"]] == [64, 256, 1024]
    last = found["strong"][-1]
    assert (last["num_slices"], last["topology"], last["way"]["mesh"]["fsdp"]) == (4, "v6e:16x16", 256)
    assert last["way"]["step_s"] > 0


def test_rows_of_a_chip_are_those_of_the_config_unless_they_are_given(jaxlm):
    own, given = (
        json.loads(jaxlm("plan", "pods", LLAMA, "--chips=256", "--weak", "--json", *more)[1])["weak"][0][
            "rows"
        ]
        for more in ((), ("--rows-per-chip=2",))
    )
    assert (own, given) == (1024, 512)


def test_the_plot_is_a_png(jaxlm, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "pods.png"
    code, _, err = jaxlm("plan", "pods", LLAMA, f"--plot={file}")
    assert (code, err) == (0, "")
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "Give what to scale"),
        (("--config=quickstart",), "does not say for which chip it is made: give --chip="),
        (("--config=quickstart", "--chip=v5e", "--config.mesh.fsdp=-1"), "--rows-per-chip=R is needed"),
        ((LLAMA, "--chip=h100"), "--chip=h100 is no TPU"),
        ((LLAMA, "--chip=v7e"), "v7e"),
        ((LLAMA, "--chips=16-64"), "--chips=16-64 must be FROM..TO"),
        ((LLAMA, "--chips=64..16"), "--chips=64..16 must be FROM..TO"),
        ((LLAMA, "--chips=0..16"), "--chips=0..16 must be FROM..TO"),
        ((LLAMA, "--chips=48"), "Nearest: 32 or 256"),
        ((LLAMA, "--chips=16..300"), "is no slice of v6e"),
        ((LLAMA, "--rows-per-chip=0"), "--rows-per-chip=0 must be positive"),
        ((LLAMA, "--plot=x.pdf"), "must end in .png"),
    ],
)
def test_a_mistake_is_one_line(jaxlm, argv, said):
    code, out, err = jaxlm("plan", "pods", *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
