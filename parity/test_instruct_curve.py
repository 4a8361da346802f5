"""Instruction tuning, live: the losses of 20 steps are those of TRL's SFTTrainer, which learns completions only."""

import json
import os

import numpy as np
import pytest
import small_tokenizers as small
import torch
import transformers

from jaxlm import run
from jaxlm.report.events import read_events

os.environ["HF_HUB_OFFLINE"] = "1"
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

STEPS, ROWS, RATE = 20, 4, 1e-3
TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message['role'] }}\n{{ message['content'] }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny Llama and a tokenizer that has a chat template."""
    folder = tmp_path_factory.mktemp("base")
    for name, content in small.level(bos=False, chat_template__jinja=TEMPLATE.encode()).items():
        (folder / name).write_bytes(content)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, initializer_range=0.3, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Questions of every length, some in Bengali, and answers that begin with a space, or a line."""
    starts = ["", " ", "\n", "আমি "]
    found = [
        {
            "instruction": f"What is {n} plus {n % 7}?" + " Think well." * (n % 5),
            "output": starts[n % 4] + str(n + n % 7),
        }
        for n in range(STEPS * ROWS)
    ]
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return path, found


def our_losses(base, path, workdir):
    """(losses, numbers of the records of each step)."""
    config = run.default_config()
    config.objective, config.init_from = "instruct", str(base)
    config.data.sources.sums = {"path": str(path), "on_exhausted": "repeat"}
    keys = {
        "data.seq_len": 256, "data.global_batch_size": ROWS, "data.packing": "pad", "data.length_window_steps": 1,
        "data.eval_fraction": 0.0, "train.eval_batches": 0, "train.num_steps": STEPS, "train.log_every_steps": 1,
        "optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "optimizer.learning_rate": RATE,
        "optimizer.weight_decay": 0.1, "checkpoint.every_steps": STEPS,
    }  # fmt: skip
    config.update_from_flattened_dict(keys)
    cfg = run.resolve(config)
    run.train(cfg, workdir)
    losses = [
        event["train/loss"] for event in read_events(workdir / "events.jsonl") if event["event"] == "step"
    ]
    data = run.open_data(cfg, workdir, quiet=True)
    rows, tokenizer = run.make_rows(cfg, data), data.tokenizer
    texts = [
        [
            tokenizer.decode(tokens[segments > 0].tolist())
            for tokens, segments in zip(batch["tokens"], batch["segments"])
        ]
        for batch in map(rows.batch, range(STEPS))
    ]
    return losses, texts


class InOrder(trl.SFTTrainer):
    """Takes records in the order it is given them."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def their_losses(base, ordered, folder):
    dataset = datasets.Dataset.from_list([
        {
            "prompt": [{"role": "user", "content": record["instruction"]}],
            "completion": [{"role": "assistant", "content": record["output"]}],
        }
        for record in ordered
    ])  # fmt: skip
    arguments = trl.SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=ROWS, max_steps=STEPS, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95, adam_epsilon=1e-8, max_grad_norm=1.0,
        logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
        max_length=257, completion_only_loss=True, optim="adamw_torch", seed=0, disable_tqdm=True,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = InOrder(
        model=model, args=arguments, train_dataset=dataset,
        processing_class=transformers.AutoTokenizer.from_pretrained(base),
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_losses_are_those_of_trl(base, records, tmp_path):
    path, found = records
    ours, texts = our_losses(base, path, tmp_path / "run")
    by_question = {record["instruction"]: record for record in found}
    ordered = [
        next(record for question, record in by_question.items() if f"\n{question}" in text)
        for batch in texts
        for text in batch
    ]
    assert len({record["instruction"] for record in ordered}) == STEPS * ROWS
    theirs = their_losses(base, ordered, tmp_path / "trl")
    assert ours[0] - ours[-1] > 0.5  # it has learned something
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
