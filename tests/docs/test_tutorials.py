"""Promises of .ci/tutorials.py: a page that does not do what it says is found. `make tutorials` runs all pages."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("tutorials", ROOT / ".ci/tutorials.py")
tutorials = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tutorials)


def page(folder, text):
    path = folder / "page.md"
    path.write_text(text)
    return path


def run(folder, text):
    (folder / "here").mkdir()
    tutorials.run(page(folder, text), folder / "here", tutorials.environment(folder))


@pytest.mark.slow  # `make tutorials` runs this page too
def test_the_pod_tutorial_does_what_it_says(tmp_path):
    (tmp_path / "here").mkdir()
    tutorials.run(tutorials.FOLDER / "pod.md", tmp_path / "here", tutorials.environment(tmp_path))
    assert (tmp_path / "here/scaling.json").exists()


def test_every_tutorial_is_run_in_the_order_of_the_navigation():
    nav = re.findall(r"tutorials/([a-z-]+)\.md", (ROOT / "mkdocs.yml").read_text())
    assert nav == ["index", *tutorials.ORDER]
    assert {path.stem for path in tutorials.FOLDER.glob("*.md")} == {"index", *tutorials.ORDER}
    assert tutorials.with_needed(list(tutorials.ORDER)) == list(tutorials.ORDER)
    assert tutorials.with_needed(["instruct"]) == ["pretrain", "continue", "instruct"]


def test_files_are_written_blocks_run_and_outputs_compared(tmp_path):
    run(
        tmp_path,
        '```python title="a.py"\nprint("one", 2)\n```\n```bash\npython a.py\necho end\n```\n```text\none 2\nend\n```\n',
    )
    assert (tmp_path / "here/a.py").exists()


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("```text\na 1\n```", "a 2"),
        ("```text\na\n...\nc\n```", "a\nb"),
        ("```{.text .measured}\nloss 0.5 x\n```", "loss 0.7 y"),
        ("```{.text .measured}\nloss 0.5\n```", "loss nan"),
    ],
)
def test_another_output_is_an_error_that_names_page_and_line(shown, printed, tmp_path):
    with pytest.raises(tutorials.Failed, match=r"page.md:[56]: the page shows"):
        run(tmp_path, f"```bash\nprintf '{printed}'\n```\n\n{shown}\n")


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("```text\na\n...\nc\n```", "a\nb\nb\nc"),
        ("```text\ntook ... s\n```", "took 3.5 s"),
        ("```{.text .measured}\nloss 0.5e-3  ###\n```", "loss -12.25 #"),
        ("```{.text .measured}\n1,024 of x2\n```", "7 of x3"),
    ],
)
def test_what_may_differ_may_differ(shown, printed, tmp_path):
    run(tmp_path, f"```bash\nprintf '{printed}'\n```\n{shown}\n")


def test_a_command_that_fails_is_an_error(tmp_path):
    with pytest.raises(tutorials.Failed, match="page.md:1: exit code 3"):
        run(tmp_path, "```bash\n(exit 3)\necho on\n```\n")


def test_a_tutorial_sees_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "made-up")
    assert "HF_TOKEN" not in tutorials.environment(tmp_path)
