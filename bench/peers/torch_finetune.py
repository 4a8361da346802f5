"""The peer in PyTorch: fine-tuning a SmolLM2-135M as users of transformers do.

    python bench/peers/torch_finetune.py classify|instruct LENGTHS.json [--seconds=60]

classify: the last four blocks, the final norm and a new head of LlamaForSequenceClassification; 16 texts a step.
instruct: all weights of LlamaForCausalLM, loss on the second half of each dialogue; 4 dialogues a step.
Batches are padded to their longest row, as data collators do; AdamW is the fused one. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import transformers

ROWS = {"classify": 16, "instruct": 4}


def config() -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, rope_theta=100_000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None, pad_token_id=0, num_labels=2,
    )  # fmt: skip


def make_model(task: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if task == "instruct":
        return transformers.LlamaForCausalLM(config())
    model = transformers.LlamaForSequenceClassification(config())
    for name, weight in model.named_parameters():
        upper = name.startswith("model.layers.") and int(name.split(".")[2]) >= 26
        weight.requires_grad = upper or name.startswith(("model.norm", "score"))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=ROWS)
    parser.add_argument("lengths")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with open(args.lengths) as file:
        lengths = json.load(file)
    model = make_model(args.task)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-5, fused=True)
    rows, num_tokens, num_steps, began = ROWS[args.task], 0, -2, 0.0
    while True:
        first = (num_steps + 2) * rows % (len(lengths) - rows)
        batch = torch.tensor(lengths[first : first + rows])
        width = int(batch.max())
        mask = torch.arange(width)[None] < batch[:, None]
        tokens = torch.randint(1, 49152, (rows, width)) * mask
        if args.task == "instruct":
            answers = mask & (torch.arange(width)[None] >= batch[:, None] // 2)
            labels = torch.where(answers, tokens, -100)
        else:
            labels = torch.randint(0, 2, (rows,))
        model(input_ids=tokens, attention_mask=mask.long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_steps += 1
        if num_steps == 0:
            began = time.perf_counter()
        elif num_steps > 0:
            num_tokens += int(batch.sum())
            if (seconds := time.perf_counter() - began) >= args.seconds:
                break
    print(json.dumps({"tokens_per_s": num_tokens / seconds, "step_s": seconds / num_steps}))


if __name__ == "__main__":
    main()
