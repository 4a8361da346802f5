"""Llama 3.1 8B at a context of 131,072 tokens on 64 TPU v5p chips (a v5p-128): the last stage of its pretraining.

    jaxlm train --config=pretrain_llama31_8b_long_v5p64 --workdir=gs://BUCKET/runs/llama31_8b_long_v5p64 \\
        --config.init_from=gs://BUCKET/runs/llama31_8b_v6e256
    jaxlm compile --config=pretrain_llama31_8b_long_v5p64 --topology=v5p:4x4x4

Every row is cut over 8 chips (`mesh.sequence`), 16,384 tokens a chip; 1M tokens a step. 800B tokens, as many as all
stages of long context of Llama 3 took together (arXiv:2407.21783, section 3.4.2).
The sources are those of `pretrain_size`, placeholders to point elsewhere; where documents are short, packing fills rows
with many, and attention has little to do.

Hardware: TPU v5p-128: 64 chips of 95 GB, 4 x 4 x 4, fsdp 8 x sequence 8.
Predicted: 10.92 s a step in the compiler's cycles, MFU 48%, 60.8 of 95.7 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-27).
Result: not run yet.
"""

from jaxlm import run
from jaxlm.models import sizes


def get_config():
    cfg = run.default_config()
    sizes.apply(cfg.model, "llama3.1-8b")
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "q,k,attention,gate,up"
    cfg.mesh.fsdp = 8
    cfg.mesh.sequence = 8

    sources = {"common_crawl": 60, "webtext": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    for name, percent in sources.items():
        cfg.data.sources[name] = dict(path=f"corpora/{name}", weight_tokens=percent, on_exhausted="repeat")
    cfg.data.seq_len = 131_072
    cfg.data.global_batch_size = 8
    cfg.data.packing = "best_fit"
    cfg.tokenizer.vocab_size = cfg.model.vocab_size

    cfg.optimizer.learning_rate = 3e-5
    cfg.optimizer.schedule = "constant"
    cfg.optimizer.warmup_steps = 1000
    cfg.train.num_steps = 762_939
    cfg.train.reduce_dtype = "bfloat16"
    cfg.train.loss_chunk_tokens = 2048
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000
    return cfg
