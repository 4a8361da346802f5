"""Classifiers, live: logits in and out, and the losses of 20 steps, are those of transformers and torch's AdamW."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers

from jaxlm.checkpoint import named_arrays
from jaxlm.data.padding import text_rows
from jaxlm.interop.hf_export import export_weights, hf_config
from jaxlm.interop.hf_import import Classes, open_source, read_params
from jaxlm.models.build import build
from jaxlm.objectives.classify import make_loss, pooled
from jaxlm.train.config import OptimizerConfig, TrainConfig
from jaxlm.train.optimizer import make_optimizer, make_schedule
from jaxlm.train.step import init_state, make_train_step

NAMES, STEPS, ROWS, RATE, DECAY = ("red", "green", "blue"), 20, 6, 1e-3, 0.1
PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def make(name, task="single_label"):
    """A tiny classifier of transformers, without dropout, every weight random."""
    kind, arguments = tiny.CONFIGS[name]
    options = dict(arguments, pad_token_id=0, initializer_range=0.1)
    if name == "gpt2":
        options |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    names = NAMES if task != "regression" else ("LABEL_0",)
    config = getattr(transformers, kind)(
        **options, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        problem_type=PROBLEMS[task],
    )  # fmt: skip
    torch.manual_seed(3)
    return transformers.AutoModelForSequenceClassification.from_config(
        config, attn_implementation="eager"
    ).eval()


@functools.cache
def batches(task):
    """Texts of all lengths and their labels, which follow from the tokens, so that there is something to learn."""
    rng, found = np.random.default_rng(0), []
    for _ in range(STEPS):
        rows = [
            rng.integers(3, tiny.VOCAB_SIZE, rng.integers(1, tiny.NUM_TOKENS)).tolist() for _ in range(ROWS)
        ]
        firsts = np.array([row[0] for row in rows])
        if task == "single_label":
            labels = (firsts % 3).astype(np.int32)
        elif task == "multi_label":
            labels = (firsts[:, None] % np.array([2, 3, 5]) == 0).astype(np.float32)
        else:
            labels = (firsts[:, None] / 50).astype(np.float32)
        found.append((rows, labels))
    return found


def padded(rows):
    """(tokens, mask) of torch, padded on the right."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def ours(model, folder):
    tiny.save(model, folder)
    source = open_source(folder)
    lm = build(source.model, 64)
    return source, lm, read_params(source, lm.shapes)


def our_logits(lm, params, rows, width):
    batch = text_rows(rows, "last", len(rows), width)
    return np.asarray(
        jax.jit(lambda params: lm.head(params, pooled(lm.hidden(params, batch), batch["weights"])))(params)
    )


@pytest.mark.parametrize("name", [name for name in tiny.CONFIGS if "-" not in name])
def test_logits_in_and_out(name, tmp_path):
    model = make(name)
    source, lm, params = ours(model, tmp_path / "theirs")
    rows = batches("single_label")[0][0]
    tokens, mask = padded(rows)
    with torch.no_grad():
        expected = model(tokens, attention_mask=mask).logits.numpy()
    for width in (tokens.shape[1], 40):
        np.testing.assert_allclose(our_logits(lm, params, rows, width), expected, rtol=0, atol=1e-4)
    export_weights(tmp_path, source.family, named_arrays(params))
    config = hf_config(
        source.family, source.model, dtype="float32", context_tokens=64, bos_id=1, eos_ids=[2], pad_id=0,
        classes=Classes("single_label", NAMES),
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert type(again) is type(model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.id2label == dict(enumerate(NAMES))
    assert (again.config.num_labels, again.config.problem_type) == (3, "single_label_classification")
    with torch.no_grad():
        np.testing.assert_array_equal(again.eval()(tokens, attention_mask=mask).logits.numpy(), expected)


def their_losses(model, task):
    # Decay is for matrices alone, as in jaxlm.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for rows, labels in batches(task):
        tokens, mask = padded(rows)
        target = torch.tensor(labels)
        target = target.long() if task == "single_label" else target
        loss = model(tokens, attention_mask=mask, labels=target).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(lm, params, task):
    optimizer = OptimizerConfig(
        learning_rate=RATE, weight_decay=DECAY, b1=0.9, b2=0.999, eps=1e-8, schedule="constant", warmup_steps=0,
        clip_norm=1.0,
    )  # fmt: skip
    tx = make_optimizer(optimizer)
    step = make_train_step(
        make_loss(lm, task=task, num_classes=1 if task == "regression" else 3),
        tx,
        make_schedule(optimizer, STEPS),
        TrainConfig(num_steps=STEPS),
        clip_norm=1.0,
        dropout_seed=None,
    )
    step, losses = jax.jit(step), []
    state = init_state(lm, tx, jax.random.key(0))._replace(params=params, opt_state=tx.init(params))
    for rows, labels in batches(task):
        batch = text_rows(rows, "last", ROWS, 24) | {"labels": jnp.asarray(labels)}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize(
    ("name", "task"),
    [("llama", "single_label"), ("gpt2", "single_label"), ("llama", "multi_label"), ("gpt2", "regression")],
)
def test_losses_of_twenty_steps(name, task, tmp_path):
    model = make(name, task)
    source, lm, params = ours(model, tmp_path)
    assert source.classes == Classes(task, () if task == "regression" else NAMES)
    assert dataclasses.asdict(source.model)["num_classes"] == (1 if task == "regression" else 3)
    expected = their_losses(model.train(), task)
    found = our_losses(lm, params, task)
    assert max(expected) - min(expected) > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
