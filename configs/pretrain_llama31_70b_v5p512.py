"""Llama 3.1 70B on 512 TPU v5p chips.

    jaxlm train --config=pretrain_llama31_70b_v5p512 --workdir=gs://BUCKET/runs/llama31_70b_v5p512 \\
        --config.tokenizer.path=gs://BUCKET/tokenizer.model
    jaxlm compile --config=pretrain_llama31_70b_v5p512 --topology=v5p:8x8x8

8M tokens a step, context 8,192, peak 1.5e-4 after 8,000 steps of warm-up (arXiv:2407.21783, section 3.4.1); 15T tokens.
The sources are those of `pretrain_size`, placeholders to point elsewhere.

Hardware: TPU v5p-1024: 512 chips of 95 GB, 8 x 8 x 8, fsdp 512.
Predicted: 22.90 s a step in the compiler's cycles, MFU 70%, 76.9 of 95.7 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-27).
Result: not run yet.
"""

from jaxlm import run
from jaxlm.models import sizes


def get_config():
    cfg = run.default_config()
    sizes.apply(cfg.model, "llama3.1-70b")
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "q,k,v,attention"
    cfg.mesh.fsdp = 512

    sources = {"common_crawl": 60, "webtext": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    for name, percent in sources.items():
        cfg.data.sources[name] = dict(path=f"corpora/{name}", weight_tokens=percent, on_exhausted="repeat")
    cfg.data.seq_len = 8192
    cfg.data.global_batch_size = 1024
    cfg.data.packing = "best_fit"
    cfg.tokenizer.vocab_size = cfg.model.vocab_size

    cfg.optimizer.learning_rate = 1.5e-4
    cfg.optimizer.warmup_steps = 8000
    cfg.train.num_steps = 1_788_139
    cfg.train.reduce_dtype = "bfloat16"
    cfg.train.loss_chunk_tokens = 2048
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000
    return cfg
