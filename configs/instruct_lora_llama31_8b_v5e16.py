"""Llama 3.1 8B follows instructions, on sixteen TPU v5e chips: LoRA.

    jaxlm train --config=instruct_lora_llama31_8b_v5e16:gs://BUCKET/llama31-8b --workdir=gs://BUCKET/runs/assistant \\
        --config.data.sources.mine.path=train.jsonl
    jaxlm compile --config=instruct_lora_llama31_8b_v5e16 --topology=v5e:4x4

The argument is a folder of `jaxlm import-hf meta-llama/Llama-3.1-8B FOLDER --mesh=fsdp:16`.
Hardware: TPU v5e-16 (16 GB a chip), fsdp 16.
Predicted: 1.27 s a step in the compiler's cycles, MFU 52%, 13.6 of 15.8 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-27).
Result: not run yet.
"""

from jaxlm import run
from jaxlm.models import sizes


def get_config(init_from: str | None = None):
    cfg = run.default_config()
    cfg.objective = "instruct"
    cfg.init_from = init_from or None
    if not init_from:
        sizes.apply(cfg.model, "llama3.1-8b")  # to plan and to compile without the weights
    cfg.data.sources.mine = dict(path="train.jsonl", on_exhausted="repeat")
    cfg.data.seq_len = 2048
    cfg.data.global_batch_size = 32
    cfg.model.dtype, cfg.model.remat = "bfloat16", "attention,gate,up"

    cfg.tune.train = "lora"
    cfg.tune.lora_rank, cfg.tune.lora_alpha = 16, 32.0
    cfg.optimizer.learning_rate = 2e-4
    cfg.optimizer.weight_decay = 0.0
    cfg.optimizer.warmup_steps = 50
    cfg.train.num_steps = 1000
    cfg.mesh.fsdp = 16
    return cfg
