"""Promises about task files: plain ones are written out, and whatever would run or leave the folder is refused."""

import json
from pathlib import Path

import pytest
import yaml

from jaxlm.evaluate import harness_tasks as tasks
from jaxlm.types import UserError

METRICS = ("acc", "exact_match")


def folder(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".yaml").write_text(content)
    return str(tmp_path)


def refused(tmp_path, content, **how):
    [file] = tasks.read_folder(folder(tmp_path, one="task: mine\n" + content)).values()
    found = tasks.code_of(file, METRICS, **how)
    with pytest.raises(UserError, match="would run code") as error:
        tasks.refuse_code(file, found)
    assert "--trust-task-code" in str(error.value)
    assert "one.yaml" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("process_docs: !function evil.run\n", "!function evil.run (line 2)"),
        ("metric_list: [{metric: acc, aggregation: !function evil.mean}]\n", "!function evil.mean"),
        ("class: !function evil.Task\n", "evil.Task"),
        ("doc_to_text: !!python/object/apply:os.system [ls]\n", "python/object/apply:os.system"),
        ("metric_list: [{metric: ./evil.py}]\n", "'./evil.py': a script"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]\n", "a script of the evaluate library"),
        ("unsafe_code: true\n", "programs that the model writes"),
        ("use_prompt: ../secret.yaml:a\n", "../secret.yaml"),
        ("dataset_kwargs: {data_files: 'https://host/x.json'}\n", "https://host/x.json"),
    ],
)
def test_code_that_a_file_names_is_refused_and_named(tmp_path, content, said):
    assert said in refused(tmp_path, content)


def test_what_an_include_brings_counts_too(tmp_path):
    folder(tmp_path, base="process_docs: !function evil.run\n")
    assert "!function evil.run" in refused(tmp_path, "include: base.yaml\n")


def test_nothing_of_the_folder_runs_while_it_is_read(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef run(x): return x\n")
    tasks.read_folder(folder(tmp_path, one="task: mine\nprocess_docs: !function evil.run\n"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("include", ["../outside.yaml", "/etc/hostname", "../tasks2/x.yaml"])
def test_an_include_does_not_leave_the_folder(tmp_path, include):
    inner = tmp_path / "tasks"
    (tmp_path / "outside.yaml").write_text("doc_to_text: secret\n")
    path = folder(inner, one=f"task: mine\ninclude: {include}\n")
    with pytest.raises(UserError, match="leads out of the folder"):
        tasks.read_folder(path)


def test_a_link_does_not_leave_the_folder(tmp_path):
    (tmp_path / "outside.yaml").write_text("task: secret\n")
    inner = tmp_path / "tasks"
    inner.mkdir()
    (inner / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    with pytest.raises(UserError, match="is a link that leads out"):
        tasks.read_folder(str(inner))


def test_plain_tasks_are_written_out_with_their_includes_and_the_paths_of_their_data(tmp_path):
    path = folder(
        tmp_path / "tasks",
        sub__one="task: mine\ninclude: ../base.yaml\ndoc_to_text: '{{q}}'\n",
        base="dataset_path: json\ndataset_kwargs: {data_files: {test: data.jsonl}}\ndoc_to_text: overwritten\n",
    )
    (tmp_path / "tasks" / "data.jsonl").write_text("{}\n")
    own = tasks.read_folder(path)
    assert tasks.code_of(own["mine"], METRICS) == []
    out = tmp_path / "out"
    out.mkdir()
    tasks.write_plain(list(own.values()), out)
    [written] = out.iterdir()
    assert yaml.safe_load(written.read_text()) == {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "tasks" / "data.jsonl")}},
        "doc_to_text": "{{q}}",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [("task: [a\n", "line 2 is not YAML"), ("- a\n", "not a mapping"),
     ("task: a\ninclude: none.yaml\n", "names no file"), ("task: a\ninclude: one.yaml\n", "circle")],
)  # fmt: skip
def test_a_file_that_is_no_task_is_named(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        tasks.read_folder(folder(tmp_path, one=content))


def test_aliases_that_stand_for_a_billion_values_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(UserError, match="more than 100,000 values"):
        tasks.read_folder(folder(tmp_path, one="task: mine\n" + "\n".join(lines) + "\n"))


def test_two_tasks_of_one_name_are_named(tmp_path):
    with pytest.raises(UserError, match="is defined in"):
        tasks.read_folder(folder(tmp_path, one="task: mine\n", two="task: mine\n"))


def test_names_are_found_by_themselves_by_wildcard_and_else_the_nearest_is_said():
    own = {"mine": tasks.TaskFile("mine", Path("a.yaml"), {})}
    known = {"arc_easy": (), "arc_challenge": (), "mine": ()}
    assert tasks.pick(["arc_easy", "mine"], own, known) == (["mine"], ["arc_easy"])
    assert tasks.pick(["arc_*"], own, known) == ([], ["arc_easy", "arc_challenge"])
    with pytest.raises(UserError, match="did you mean arc_easy"):
        tasks.pick(["arc_esy"], own, known)
    with pytest.raises(UserError, match="is a path: give its folder"):
        tasks.pick(["../x.yaml"], own, known)


def test_groups_bring_their_members(tmp_path):
    own = tasks.read_folder(
        folder(tmp_path, g="group: all\ntask: [one, {task: arc_easy}, {group: more, task: [two]}]\n",
               one="task: one\n", two="task: two\n")
    )  # fmt: skip
    assert sorted(tasks.with_members(["all"], own, {"arc_easy": ()})) == ["all", "arc_easy", "one", "two"]


def test_the_index_of_the_package_knows_tasks_groups_and_tags(tmp_path):
    root = Path(folder(tmp_path, arc__a="tag:\n  - easy_ones\ntask: arc_easy  # a comment\n",
                       arc__b="group: 'arc'\ntask: [arc_easy]\n", odd__c="doc_to_text: 'task: no'\n"))  # fmt: skip
    found = tasks.package_index(root)
    assert {"arc_easy", "easy_ones", "arc"} <= set(found)
    assert tasks.package_folders(["arc_easy"], found, root) == [root / "arc"]


def test_json_is_yaml(tmp_path):
    own = tasks.read_folder(folder(tmp_path, one=json.dumps({"task": "mine", "doc_to_choice": ["a", "b"]})))
    assert own["mine"].config["doc_to_choice"] == ["a", "b"]
