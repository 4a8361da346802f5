"""jaxlm/runconfig.py: the rules that cross sections."""

import dataclasses
import re
from pathlib import Path

import pytest

from jaxlm import objectives, runconfig
from jaxlm.config import diff, iterate_keys
from jaxlm.parallel.config import AXES
from jaxlm.runconfig import RunConfig, default_config, load_config, parse, resolve, resolve_mesh
from jaxlm.types import UserError

SMALL = Path(__file__).parent / "small_config.py"


def small(*flags):
    return resolve(parse([f"--config={SMALL}", *(f"--config.{flag}" for flag in flags)]))


def test_the_default_config_is_the_dataclass_and_needs_only_a_source():
    cfg = default_config()
    with pytest.raises(UserError, match="data.sources is empty"):
        resolve(cfg)
    cfg.data.sources.mine = {"path": "x"}
    resolved = resolve(cfg)
    source = (
        "path",
        "weight_tokens",
        "on_exhausted",
        "max_epochs",
        "text_key",
        "document",
        "columns",
        "eval_path",
    )
    expected = {"data.packing"} | {f"data.sources.mine.{name}" for name in source}
    assert {difference.key for difference in diff(RunConfig(), resolved)} == expected
    assert resolved.data.packing == "concat"


def test_the_names_of_objectives_are_those_of_the_table():
    assert runconfig.OBJECTIVES == tuple(objectives.OBJECTIVES)


def test_the_number_of_keys_stays_small():
    assert len(list(iterate_keys(RunConfig))) <= 113


UNITS = r"num_\w+|\w+_(steps|tokens|s|batches|epochs|len|dim|size|blocks)"
"""What a count or quantity ends with (or begins, where what is counted has a name): steps, tokens, seconds, ..."""
PURE_NUMBERS = {
    "seed", "balance_loss", "router_z_loss", "norm_eps", "rope_theta", "rope_local_theta", "rope_scaling_factor",
    "attention_softcap", "logits_softcap", "dropout", "eval_fraction", "label_smoothing", "lora_rank", "lora_alpha",
    "lora_dropout", "learning_rate", "final_lr_fraction", "b1", "b2", "eps", "weight_decay", "clip_norm", "z_loss",
    "spike_factor",
}  # fmt: skip
"""Shares, factors and coefficients."""
COUNTS = {"sliding_window", "keep_last", *AXES}
"""Of keys a query sees, of checkpoints, and of devices."""


def test_the_name_of_every_quantity_says_its_unit():  # pain 15, 24
    """So that nobody takes steps for batches, or a share of tokens for one of documents."""
    numbers = [
        key.name.rpartition(".")[2] for key in iterate_keys(RunConfig) if key.spec.type in (int, float)
    ]
    assert {"warmup_steps", "weight_tokens", "step_timeout_s"} <= set(numbers)
    assert [n for n in numbers if not re.fullmatch(UNITS, n) and n not in PURE_NUMBERS | COUNTS] == []
    assert set(numbers) >= PURE_NUMBERS | COUNTS  # no others are excused


def test_a_prompt_is_not_trained_on_unless_that_is_asked_for():  # pain 30
    cfg = default_config()
    cfg.objective, cfg.data.sources.mine = "instruct", {"path": "x"}
    assert not resolve(cfg).instruct.train_on_prompt


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["objective=pretrian"],
            "objective='pretrian' is not one of pretrain, instruct, classify; did you mean 'pretrain'?",
        ),
        (["seed=-1"], "seed=-1 must be in [0, 2**32)."),
        (
            [f"data.sources.{name}.weight_tokens=0" for name in ("topics", "docstrings", "licences")],
            "Give one of them a positive weight (docstrings, licences, topics).",
        ),
        (["tokenizer.path="], "tokenizer.path is empty: give a .model file, a tokenizer.json or a folder"),
        (["data.eval_fraction=0"], "train.eval_batches=8 needs held-out text, but data.eval_fraction=0.0."),
        (
            ["train.eval_batches=0", "checkpoint.keep_best=true"],
            "checkpoint.keep_best=True needs held-out losses",
        ),
        (["data.global_batch_size=10", "train.num_microbatches=4"], "Try global_batch_size=8 or 12."),
        (["data.global_batch_size=2", "mesh.data=4"], "Try global_batch_size=4."),
        (
            ["data.global_batch_size=20", "mesh.data=3", "mesh.fsdp=2", "train.num_microbatches=2"],
            "must be a multiple of train.num_microbatches=2 x mesh.data=3 x mesh.fsdp=2 = 12: ",
        ),
        (
            ["model.num_kv_heads=2", "mesh.tensor=4"],
            "model.num_kv_heads=2 must be a multiple of mesh.tensor=4",
        ),
        (
            ["model.mlp_dim=510", "mesh.tensor=4", "model.num_kv_heads=4"],
            "Try mesh.tensor in [1, 2, 3, 5, 6]",
        ),
        (
            ["model.vocab_size=4097", "mesh.tensor=2"],
            "model.vocab_size=4097 must be a multiple of mesh.tensor=2",
        ),
        (
            ["mesh.fsdp=5", "data.global_batch_size=20"],
            "model.embed_dim=192 must be a multiple of mesh.fsdp=5",
        ),
        (
            ["mesh.expert=4", "data.global_batch_size=18", "model.num_experts=4"],
            "must be a multiple of train.num_microbatches=1 x mesh.expert=4 = 4: ",
        ),
        (
            ["mesh.expert=4", "model.num_experts=6"],
            "model.num_experts=6 must be a multiple of mesh.expert=4: each device holds an equal part. "
            "Try mesh.expert in [1, 2, 3, 6]",
        ),
        (
            ["data.seq_len=200", "mesh.sequence=8"],
            "data.seq_len=200 must be a multiple of 2 x mesh.sequence=8 = 16: each device has two pieces of every row. "
            "Try seq_len=192 or 208, or mesh.sequence in [1, 2, 4, 5, 10].",
        ),
        (
            ["mesh.sequence_attention=rings"],
            "mesh.sequence_attention='rings' is not one of gather, ring; did you mean 'ring'?",
        ),
        (["mesh.expert=2"], "mesh.expert=2 has nothing to split: model.num_experts is unset"),
        (
            ["optimizer.schedule=constant", "optimizer.decay_steps=9"],
            "optimizer.decay_steps=9 would be ignored",
        ),
        (["train.profile_steps=590:601"], "must end by train.num_steps=600. Try profile_steps='595:600'."),
        (
            ["model.positions=learned", "model.max_seq_len=64"],
            "data.seq_len=128 must not exceed model.max_seq_len=64",
        ),
        (["model.vocab_size=4000"], "model.vocab_size=4000 must be at least tokenizer.vocab_size=4096"),
    ],
)
def test_what_cannot_work_is_one_line_with_a_way_out(flags, message):
    with pytest.raises(UserError) as caught:
        small(*flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        ["data.eval_fraction=0", "train.eval_batches=0"],
        ["train.num_steps=10"],  # a trial: within its warm-up
        ["optimizer.schedule=wsd", "optimizer.decay_steps=590"],
        ["train.profile_steps=595:600"],
        ["model.positions=learned", "model.max_seq_len=128"],
        ["model.vocab_size=4000", "tokenizer.kind=char"],
        ["model.vocab_size=4000", "tokenizer.path=some.model"],
        ["data.global_batch_size=24", "mesh.data=3", "train.num_microbatches=4"],
        ["mesh.fsdp=1", "mesh.tensor=-1"],
        ["model.num_experts=6", "mesh.expert=2"],
        ["data.seq_len=208", "mesh.sequence=8"],
        ["data.seq_len=200", "mesh.sequence=8", "objective=instruct", "data.packing=pad"],
    ],
)
def test_what_just_fits_is_accepted(flags):
    small(*flags)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], None),
        (["optimizer.warmup_steps=599"], None),
        (["optimizer.decay_steps=550"], None),
        (["optimizer.warmup_steps=600"], "num_steps=600 ends while the learning rate still rises"),
        (["train.num_steps=10"], "try warmup_steps=1 and no decay_steps"),
        (["optimizer.schedule=wsd", "optimizer.warmup_steps=540"], None),
        (["optimizer.schedule=wsd", "optimizer.warmup_steps=541"], "warmup_steps=541 + decay_steps=60"),
        (["optimizer.schedule=constant", "optimizer.warmup_steps=599"], None),
        (["optimizer.decay_steps=551"], "num_steps=600 ends before the learning rate has fallen"),
    ],
)
def test_a_run_shorter_than_its_schedule_is_told_so(flags, told):
    cfg = small(*flags)
    note = cfg.optimizer.cut_short(cfg.train.num_steps)
    assert note is None if told is None else note is not None and told in note


@pytest.mark.parametrize(
    ("flags", "num_devices", "sizes"),
    [
        ([], 1, (1, 1, 1, 1, 1)),
        ([], 8, (1, 8, 1, 1, 1)),
        (["mesh.data=2", "mesh.tensor=2"], 8, (2, 2, 1, 1, 2)),
        (["mesh.data=-1", "mesh.fsdp=4"], 8, (2, 4, 1, 1, 1)),
        (["mesh.fsdp=2"], 2, (1, 2, 1, 1, 1)),
        (["model.num_experts=4", "mesh.expert=4"], 8, (1, 2, 4, 1, 1)),
        (["model.num_experts=8", "mesh.expert=-1", "mesh.fsdp=1"], 8, (1, 1, 8, 1, 1)),
        (["mesh.sequence=4"], 8, (1, 2, 1, 4, 1)),
    ],
)
def test_the_mesh_takes_all_devices(flags, num_devices, sizes):
    assert resolve_mesh(small(*flags), num_devices) == dict(zip(AXES, sizes))


@pytest.mark.parametrize(
    ("flags", "num_devices", "message"),
    [
        (
            ["mesh.data=8"],
            4,
            "must divide the 4 devices. Try mesh.fsdp=-1 (all that are left), ",
        ),
        (
            ["mesh.fsdp=4"],
            8,
            "mesh.data=1 x mesh.fsdp=4 x mesh.expert=1 x mesh.sequence=1 x mesh.tensor=1 must multiply to the 8 "
            "devices.",
        ),
        ([], 6, "data.global_batch_size=16 must be a multiple of train.num_microbatches=1 x mesh.fsdp=6"),
        ([], 32, "Try global_batch_size=32."),
        (["mesh.sequence=-1", "mesh.fsdp=1"], 3, "must be a multiple of 2 x mesh.sequence=3 = 6: "),
        (["mesh.expert=-1", "mesh.fsdp=1"], 4, "mesh.expert=4 has nothing to split"),
        (["mesh.fsdp=1", "mesh.tensor=-1"], 4, "model.num_kv_heads=2 must be a multiple of mesh.tensor=4"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_what_would(flags, num_devices, message):
    cfg = small(*flags)
    with pytest.raises(UserError) as caught:
        resolve_mesh(cfg, num_devices)
    assert message in str(caught.value)


def test_a_saved_run_config_loads_as_it_was(tmp_path):
    cfg = dataclasses.replace(small("optimizer.clip_norm=None"), init_from="runs/größe")
    runconfig.save_config(tmp_path / "config.json", cfg)
    assert load_config(tmp_path / "config.json") == cfg
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seed": 1', " is not a saved config: it is not valid JSON (Expecting"),
        (b"", " is not a saved config: it is not valid JSON (Expecting value"),
        (b"\xff\x00", " is not a saved config: it is not valid JSON ("),
        (b"[" * 100_000, " is not a saved config: it is not valid JSON ("),
        (b"[]", " is not a saved config: it holds list, not an object."),
        (b'{"name": "my-web-app", "version": 3}', ": Unknown config key name"),
        (b'{"seed": "7"}', ": seed='7' must be a whole number (int), not str."),
        (b'{"data": {"seq_len": 1}}', ": data.seq_len=1 must be at least 2"),
        (None, " cannot be read: Is a directory."),
    ],
)
def test_a_damaged_or_foreign_saved_config_is_named_with_the_rule_and_a_way_out(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "Restore it (each checkpoint has a copy" in str(caught.value)
    assert "another --workdir" in str(caught.value)
    assert "\n" not in str(caught.value)


MAY = [
    "train.num_steps=700", "train.eval_every_steps=7", "train.eval_batches=3", "train.log_every_steps=3",
    "train.num_microbatches=2", "train.loss_chunk_tokens=64", "train.profile_steps=5:7",
    "train.max_bad_steps=9",
    "checkpoint.every_steps=7", "checkpoint.keep_best=true", "mesh.data=2", "report.writers=wandb",
    "model.remat=full", "model.scan_layers=false", "model.attention=dense", "data.cache_dir=/elsewhere",
    "model.attention_blocks=512,256,128",
    "data.sources.topics.on_exhausted=stop", "data.sources.topics.max_epochs=9",
]  # fmt: skip
MUST_NOT = [
    "seed=1", "model.embed_dim=128", "model.dtype=bfloat16", "model.dropout=0.1",
    "tokenizer.kind=unigram", "data.seq_len=64", "data.global_batch_size=32", "data.packing=best_fit",
    "data.eval_fraction=0.1", "data.sources.topics.weight_tokens=0.9", "data.sources.topics.path=x",
    "optimizer.learning_rate=1", "optimizer.warmup_steps=7", "train.z_loss=0.1", "train.spike_factor=3",
]  # fmt: skip


@pytest.mark.parametrize("flag", MAY)
def test_a_restart_may_change_how_a_run_is_computed(flag):
    assert diff(small(), small(flag))
    assert runconfig.restart_differences(small(), small(flag)) == []


@pytest.mark.parametrize("flag", MUST_NOT)
def test_a_restart_may_not_change_which_run_it_is(flag):
    differences = runconfig.restart_differences(dataclasses.asdict(small()), small(flag))
    assert [difference.key for difference in differences] == [flag.partition("=")[0]]
    assert differences == diff(small(), small(flag))


def test_other_weights_to_start_from_make_another_run():
    other = dataclasses.replace(small(), init_from="x")
    assert [difference.key for difference in runconfig.restart_differences(small(), other)] == ["init_from"]


def test_a_source_that_came_or_went_makes_another_run():
    gone = small("data.sources.topics=None")
    keys = [difference.key for difference in runconfig.restart_differences(small(), gone)]
    assert "data.sources.topics.path" in keys


def test_a_vocabulary_left_to_the_tokenizer_is_no_difference():
    filled = dataclasses.replace(small(), model=dataclasses.replace(small().model, vocab_size=4096))
    assert runconfig.restart_differences(filled, small()) == []
    other = small("model.vocab_size=5000")
    assert [d.key for d in runconfig.restart_differences(filled, other)] == ["model.vocab_size"]
