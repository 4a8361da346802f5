"""A folder that holds no run: what is said of it, and which run is meant."""

import pytest

from jaxlm.report.missing_run import missing_run


@pytest.fixture
def runs(tmp_path):
    """A folder of runs: one that trained, one that only began, one that is imported."""
    for name, file in (("lion", "config.json"), ("tiger", "events.jsonl"), ("wolf", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "liom").mkdir()  # nearer, and no run
    (tmp_path / "notes.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lionn", "holds no run: there is no such folder. Did you mean RUNS/lion?"),
        ("liom", "holds no run: config.json is missing. Did you mean RUNS/lion?"),
        ("zebra", "no such folder. Give the --workdir of a training. There are runs in RUNS: lion, tiger, wolf."),
        (".", "config.json is missing. Give the --workdir of a training. There are runs in RUNS: lion, tiger, wolf."),
        ("notes.txt", "is a file. Give the folder of a run"),
        ("no/such/place", "holds no run: there is no such folder. Give the --workdir of a training."),
    ],
)  # fmt: skip
def test_the_nearest_run_is_named_or_all_there_are(runs, name, said):
    path = runs / name if name != "." else runs
    message = str(missing_run(path, "--run=")).replace(str(runs), "RUNS")
    assert message.startswith(f"--run=RUNS{'' if name == '.' else '/' + name} ")
    assert said in message


def test_many_runs_are_counted(runs):
    for number in range(4):
        (runs / f"more{number}").mkdir()
        (runs / f"more{number}" / "config.json").touch()
    assert "lion, more0, more1, more2, more3 and 2 more." in str(missing_run(runs))
