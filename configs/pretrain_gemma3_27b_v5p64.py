"""Gemma 3 27B on 64 TPU v5p chips (a v5p-128).

    jaxlm train --config=pretrain_gemma3_27b_v5p64 --workdir=gs://BUCKET/runs/gemma3_27b_v5p64 \\
        --config.tokenizer.path=gs://BUCKET/tokenizer.model
    jaxlm compile --config=pretrain_gemma3_27b_v5p64 --topology=v5p:4x4x4

The model of arXiv:2503.19786 (14T tokens; its batch is not published): 1M tokens a step, context 4,096, 1T tokens.
The sources are those of `pretrain_size`, placeholders to point elsewhere.

Hardware: TPU v5p-128: 64 chips of 95 GB, 4 x 4 x 4, fsdp 64.
Predicted: 9.25 s a step in the compiler's cycles, MFU 64%, 77.9 of 95.7 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-28).
Result: not run yet.
"""

from jaxlm import run
from jaxlm.models import sizes


def get_config():
    cfg = run.default_config()
    sizes.apply(cfg.model, "gemma3-27b")
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "attention,gate"
    cfg.mesh.fsdp = 64

    sources = {"common_crawl": 60, "webtext": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    for name, percent in sources.items():
        cfg.data.sources[name] = dict(path=f"corpora/{name}", weight_tokens=percent, on_exhausted="repeat")
    cfg.data.seq_len = 4096
    cfg.data.global_batch_size = 256
    cfg.data.packing = "best_fit"
    cfg.tokenizer.vocab_size = cfg.model.vocab_size

    cfg.optimizer.learning_rate = 3e-4
    cfg.optimizer.warmup_steps = 2000
    cfg.train.num_steps = 953_674
    cfg.train.reduce_dtype = "bfloat16"
    cfg.train.loss_chunk_tokens = 2048
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000
    return cfg
