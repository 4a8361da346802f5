"""Tasks of lm-evaluation-harness by our model and by its `hf` model, on the same weights: the same scores.

Tiny random weights, three kinds of tokenizers, and tasks that the test writes: multiple choice, perplexity, answers.
"""

import json

import numpy as np
import pytest
import small_tokenizers as small
import torch
import transformers

from jaxlm.evaluate.harness import TaskOptions, evaluate_tasks, opened_tasks
from jaxlm.run_interop import import_hf
from jaxlm.run_lm_eval import RunLM

TOKENIZERS = {
    "level": (small.level, "<|begin|>", "<|end|>"),
    "gpt2": (small.gpt2, "<|endoftext|>", "<|endoftext|>"),
    "llama": (small.metaspace, "<s>", "</s>"),
}
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{text}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "fewshot_split": "train",
        "num_fewshot": 1,
        "metric_list": [{"metric": name, "aggregation": "mean"} for name in ("acc", "acc_norm")],
    },
    "letters": {  # answers of one token, which share a pass
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}} ",
        "doc_to_choice": ["a", "b", "c"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "the",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "bits_per_byte")],
    },
}


@pytest.fixture(scope="module")
def task_path(tmp_path_factory):
    """Short questions, and some longer than the 64 tokens that the models read."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    words = "the lion is in a zoo and forest, wild cats return an integer value of list".split()

    def text(low, high):
        return " ".join(rng.choice(words, rng.integers(low, high)))

    for split, num in (("train", 4), ("test", 10)):
        lines = [
            {
                "text": text(3, 12) if i % 3 else text(40, 60),
                "choices": [text(1, 6) for _ in range(3)],
                "gold": int(rng.integers(0, 3)),
            }
            for i in range(num)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, task in TASKS.items():
        data = {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}}
        about = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({**about, **task}))  # JSON is YAML
    return folder


@pytest.fixture(scope="module", params=TOKENIZERS)
def checkpoint(request, tmp_path_factory):
    """(folder of a checkpoint of transformers, the run made of it)."""
    make, bos, eos = TOKENIZERS[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    for name, content in make().items():
        (folder / name).write_bytes(content)
    config = (
        json.loads((folder / "tokenizer_config.json").read_text())
        if "tokenizer_config.json" in make()
        else {}
    )
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    run = tmp_path_factory.mktemp("run") / "run"
    import_hf(str(folder), run, say=lambda line: None)
    return folder, run


def theirs(folder, options):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    with opened_tasks(options) as (tasks, manager):
        return simple_evaluate(
            model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True
        )


def test_every_score_is_that_of_the_hf_model(checkpoint, task_path):
    folder, run = checkpoint
    options = TaskOptions(list(TASKS), task_path=str(task_path))
    expected = theirs(folder, options)
    found = evaluate_tasks(RunLM(run=run, batch_size=5), options)
    for task, metrics in expected["results"].items():
        for key, value in metrics.items():
            if isinstance(value, float) and "stderr" not in key:
                assert found["results"][task][key] == pytest.approx(value, rel=1e-4), (task, key)
    for task in TASKS:
        for ours, other in zip(found["samples"][task], expected["samples"][task], strict=True):
            # An answer is a text, else (log-likelihood, whether greedy decoding writes it), or the first alone.
            for a, b in zip(ours["resps"], other["resps"], strict=True):
                if task == "write":
                    # A newline among bytes that are no character ends our row; to the other it is one of them, and
                    # its row goes on as long as any other of its batch.
                    [x], [y] = a, b
                    assert x == y or ("\ufffd" in y and y.startswith(x.rstrip("\ufffd"))), (x, y)
                elif task == "read":
                    assert float(a[0]) == pytest.approx(float(b[0]), abs=2e-3)
                else:
                    assert float(a[0][0]) == pytest.approx(b[0][0], abs=1e-3)
                    assert str(a[0][1]) == str(b[0][1])
    assert found["num_truncated"] > 0  # the longer questions go beyond 64 tokens, for both


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_bos_stands_where_it_is_asked_for(checkpoint, add_bos_token):
    from lm_eval.models.huggingface import HFLM

    folder, run = checkpoint
    hf = HFLM(pretrained=str(folder), device="cpu", dtype="float32", add_bos_token=add_bos_token)
    ours = RunLM(run=run, add_bos_token=add_bos_token)
    bos = hf.tokenizer.bos_token
    for text in ("the lion", " in", f"{bos}the zoo"):
        ids = hf.tok_encode(text)
        if add_bos_token and hf.tokenizer.bos_token_id not in ids:
            continue  # a tokenizer without a template for BOS does not put one there for anybody
        assert ours.tok_encode(text) == ids, text
    assert ours._encode_pair("the lion ", "is in") == hf._encode_pair("the lion ", "is in")
    assert (ours.prefix_token_id, ours.eot_token_id) == (hf.prefix_token_id, hf.eot_token_id)
