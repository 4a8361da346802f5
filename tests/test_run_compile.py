"""Promises of jaxlm/run_compile.py: what is compiled ahead is what trains; its bytes are the compiler's."""

import dataclasses
import json
import os
import sys
import types

import jax
import numpy as np
import pytest
from slow import slow
from small_classifier import make_run
from test_run import small, write_squares

from jaxlm import run, run_compile
from jaxlm.data.pipeline import make_iterator
from jaxlm.plan import topology
from jaxlm.run_data import make_rows, open_data, with_classes, with_vocabulary
from jaxlm.run_hooks import make_place
from jaxlm.types import UserError

WORDS = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, records with an answer and a label each, and a model to fine-tune."""
    folder = tmp_path_factory.mktemp("data")
    records = [
        {"instruction": f"Say {word}.", "output": word, "text": word, "single_label": str(i % 3),
         "multi_label": [str(i % 3), str(i % 2)], "regression": i / 2}
        for i, word in enumerate(WORDS * 5)
    ]  # fmt: skip
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_squares(folder / "squares.txt")
    make_run(folder / "base", labels=None, objective="pretrain")
    return folder


def config(kind, folder):
    """A run of one step of each objective."""
    keys = {
        "train__num_steps": 1,
        "train__eval_batches": 0,
        "data__eval_fraction": 0.2,
        "data__eval_split": "hash",
    }
    if kind == "pretrain":
        text = folder / "squares.txt"
        return small(text, model__dropout=0.1, train__num_microbatches=2, data__global_batch_size=16, **keys)
    keys |= {"init_from": str(folder / "base"), "data__seq_len": 128 if kind == "instruct" else 16}
    columns = "instruction=instruction,output=output"
    if kind == "instruct":
        keys |= {"tune__train": "lora", "tune__lora_rank": 2}
    else:
        columns = f"text=text,label={kind}"
        keys["classify__task"] = kind
    config = run.default_config()
    config.objective = kind if kind == "instruct" else "classify"
    config.data.sources.mine = {
        "path": str(folder / "records.jsonl"),
        "on_exhausted": "repeat",
        "columns": columns,
    }
    config.data.global_batch_size = 8
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return run.resolve(config)


def filled_in(cfg):
    """(config with what its data brings, that data)"""
    data = open_data(cfg, quiet=True)
    return with_classes(with_vocabulary(cfg, data.tokenizer), data.labels), data


class Seen(Exception):
    """Ends a run at its first step."""


def trained_program(cfg, workdir, monkeypatch):
    """The StableHLO of the step that `run.train` calls, for the arrays that it calls it with."""
    build_pieces = run.build_pieces

    def watched(*args):
        pieces = build_pieces(*args)

        def train(*arrays):
            raise Seen(pieces.steps.train.lower(*arrays).as_text())

        return pieces._replace(steps=pieces.steps._replace(train=train))

    monkeypatch.setattr(run, "build_pieces", watched)
    jax.config.update("jax_disable_most_optimizations", True)  # of the program that makes the weights
    try:
        with pytest.raises(Seen) as seen:
            run.train(cfg, workdir)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return seen.value.args[0]


@pytest.mark.parametrize("kind", ["pretrain", slow("instruct"), slow("single_label")])
def test_what_is_compiled_ahead_is_the_very_step_that_trains(kind, folder, tmp_path, monkeypatch):
    cfg = config(kind, folder)
    trained = trained_program(cfg, tmp_path / "run", monkeypatch)
    step = run_compile.lower_step(filled_in(cfg)[0], run_compile.devices_of(topology.parse("cpu:8")))
    assert step.lowered.as_text() == trained
    assert ("frozen parameters" in step.argument_parts_bytes) == (kind == "instruct")


@pytest.mark.parametrize("kind", ["pretrain", "instruct", "single_label", "multi_label", "regression"])
def test_the_batch_is_like_the_first_one_that_is_read(kind, folder, tmp_path):
    cfg, data = filled_in(config(kind, folder))
    pieces = run.build_pieces(cfg)
    made = run.Run(cfg, tmp_path, data, make_rows(cfg, data), None, pieces)
    with make_iterator(made.rows, num_steps=1) as batches:
        first = make_place(made)(next(batches))
    expected = run_compile.abstract_batch(cfg, pieces.mesh)
    assert {name: value.shape for name, value in expected.items()} == {n: v.shape for n, v in first.items()}
    assert {name: value.dtype for name, value in expected.items()} == {n: v.dtype for n, v in first.items()}
    assert {name: value.sharding for name, value in expected.items()} == {
        n: v.sharding for n, v in first.items()
    }


def test_rows_of_padded_texts_are_compiled_at_their_full_width(folder):
    cfg, _ = filled_in(config("single_label", folder))
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, seq_len=40))
    assert run_compile.abstract_batch(cfg, run.build_pieces(cfg).mesh)["tokens"].shape == (8, 40)


def test_weights_of_labels_are_as_many_as_in_the_run(folder):
    cfg, _ = filled_in(config("single_label", folder))
    assert run_compile.class_weights_of(cfg) is None
    cfg = dataclasses.replace(cfg, classify=dataclasses.replace(cfg.classify, class_weights="balanced"))
    assert run_compile.class_weights_of(cfg) == (1.0, 1.0, 1.0)


def test_auto_is_what_the_platform_of_the_devices_has(folder):
    cfg = filled_in(config("pretrain", folder))[0]

    def program(attention):
        model = dataclasses.replace(cfg.model, attention=attention)
        step = run_compile.lower_step(dataclasses.replace(cfg, model=model), jax.devices()[:2])
        return step.sha256, step.kernels["attention"]

    assert program("auto") == program("chunked")
    assert program("auto")[0] != program("dense")[0]


@pytest.mark.parametrize(
    ("platform", "seq_len", "said"),
    [
        ("cpu", 1024, "blocks"),
        ("gpu", 1024, "ragged_dot"),
        ("tpu", 1024, "grouped"),
        ("tpu", 100, "ragged_dot"),
    ],
)
def test_it_says_what_runs_the_products_of_experts(platform, seq_len, said):
    flags = [f"--config.data.seq_len={seq_len}", "--config.data.global_batch_size=8", "--config.mesh.fsdp=8"]
    cfg = run.resolve(run.parse(["--config=pretrain_size:qwen3-30b-a3b", *flags]))
    device = types.SimpleNamespace(platform=platform, device_kind="TPU v5")
    mesh = run.resolve_mesh(cfg, 8)
    assert run_compile.kernels_of(cfg, device, mesh)["experts"] == said
    dense = run.resolve(run.parse(["--config=pretrain_size:qwen3-8b", *flags]))
    assert "experts" not in run_compile.kernels_of(dense, device, mesh)


def test_bytes_of_the_arguments_are_those_of_the_compiler(folder):
    cfg = filled_in(config("pretrain", folder))[0]
    step = run_compile.lower_step(cfg, jax.devices()[:8])
    compiled = run_compile.compile_step(step)
    counters = 4 * 4  # step, two counts, mean norm
    assert compiled.memory.argument_bytes == sum(step.argument_parts_bytes.values()) + counters
    assert not compiled.memory.is_reported
    assert "all-reduce" in compiled.hlo


def test_a_mesh_may_lie_on_a_part_of_the_devices():
    assert len(run_compile.devices_of(topology.parse("cpu:2"))) == 2
    with pytest.raises(UserError, match=r"JAX has 8 CPU device\(s\).*device_count=16"):
        run_compile.devices_of(topology.parse("cpu:16"))


def test_a_mesh_that_does_not_fill_the_devices_is_refused(folder):
    cfg = filled_in(config("pretrain", folder))[0]
    cfg = dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, fsdp=3))
    with pytest.raises(UserError, match="mesh.fsdp=3 .* must multiply to the 8 devices"):
        run_compile.lower_step(cfg, jax.devices())


def test_what_a_library_says_is_shown_to_those_who_asked_it(capfd, monkeypatch):
    monkeypatch.setenv("TPU_STDERR_LOG_LEVEL", "0")
    with run_compile.quiet_stderr():
        os.write(2, b"emitting for fusion.1 time: 5.6 s\n")
    assert capfd.readouterr().err == "emitting for fusion.1 time: 5.6 s\n"


def test_warnings_of_libraries_stay_off_the_terminal_unless_something_fails(capfd, monkeypatch):
    monkeypatch.delenv("TPU_STDERR_LOG_LEVEL", raising=False)
    with run_compile.quiet_stderr():
        os.write(2, b"no metadata server\n")
    assert capfd.readouterr().err == ""

    def fail():
        with run_compile.quiet_stderr():
            os.write(2, b"this is why\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "this is why\nafter\n"


REPORT = """\
Memory Space: default (color=0)
Total bytes: 29759652352 (27.72GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
    9.16GiB(100%);    9.16GiB;        16384;                1; f32[300000,8192]

Memory Space: vmem (color=1)
Total bytes: 99999999999 (93.13GiB)
"""


def test_the_report_of_the_compiler_is_read(tmp_path):
    """As libtpu 0.0.42.1 wrote it, but for vector memory, where it said 0."""
    assert run_compile.reported_bytes(tmp_path) is None
    (tmp_path / "module_0000.jit_step.cl_1.after_optimizations-memory-usage-report.txt").write_text(REPORT)
    assert run_compile.reported_bytes(tmp_path) == 29_759_652_352


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (27.72G) exceeds "
         "available HBM (15.75G). HLO module: jit_step.", 27.72),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.03G of 15.75G hbm. Exceeded", 18.03),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.0M of 16.0M vmem.", None),
    ],
)  # fmt: skip
def test_the_bytes_of_a_refusal_are_read(message, gib):
    assert run_compile.bytes_of_refusal(message) == (None if gib is None else round(gib * 2**30))


class Refused:
    """A lowered step that the compiler refuses."""

    def __init__(self, message):
        self.message = message

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(self.message)


def refused_step(message):
    pieces = run.Pieces(None, None, None, jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",)), {}, None)
    return run_compile.LoweredStep(Refused(message), pieces, {}, {"parameters": 5}, 0.0)


def test_a_step_that_is_refused_for_its_size_has_its_bytes():
    compiled = run_compile.compile_step(refused_step("RESOURCE_EXHAUSTED: Used 2.00G of 1.00G hbm.\nmore"))
    assert compiled.hlo is None
    assert compiled.memory.total_bytes == 2**31
    assert compiled.memory.argument_bytes == 5
    assert compiled.memory.refused == "RESOURCE_EXHAUSTED: Used 2.00G of 1.00G hbm."


def test_another_refusal_is_not_taken_for_one_of_size():
    with pytest.raises(UserError, match="refuses this step: RESOURCE_EXHAUSTED: Used 20.0M of 16.0M vmem"):
        run_compile.compile_step(refused_step("RESOURCE_EXHAUSTED: Used 20.0M of 16.0M vmem."))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run_compile.compile_step(refused_step("INTERNAL: a bug"))
