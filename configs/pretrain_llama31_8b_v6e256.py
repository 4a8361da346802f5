"""Llama 3.1 8B on a TPU v6e pod.

    jaxlm train --config=pretrain_llama31_8b_v6e256 --workdir=gs://BUCKET/runs/llama31_8b_v6e256 \\
        --config.tokenizer.path=gs://BUCKET/tokenizer.model
    jaxlm compile --config=pretrain_llama31_8b_v6e256 --topology=v6e:16x16

8M tokens a step, context 8,192, peak 3e-4 after 8,000 steps of warm-up (arXiv:2407.21783, section 3.4.1, for 8B);
15T tokens.
The sources are those of `pretrain_size`, placeholders to point elsewhere.

Hardware: TPU v6e-256 (32 GB a chip), fsdp 256.
Predicted: 3.22 s a step in the compiler's cycles, MFU 57%, 23.4 of 31.2 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-27).
Result: not run yet.
"""

from jaxlm import run
from jaxlm.models import sizes


def get_config():
    cfg = run.default_config()
    sizes.apply(cfg.model, "llama3.1-8b")
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "save_attention"
    cfg.mesh.fsdp = 256

    sources = {"common_crawl": 60, "webtext": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    for name, percent in sources.items():
        cfg.data.sources[name] = dict(path=f"corpora/{name}", weight_tokens=percent, on_exhausted="repeat")
    cfg.data.seq_len = 8192
    cfg.data.global_batch_size = 1024
    cfg.data.packing = "best_fit"
    cfg.tokenizer.vocab_size = cfg.model.vocab_size

    cfg.optimizer.learning_rate = 3e-4
    cfg.optimizer.warmup_steps = 8000
    cfg.train.num_steps = 1_788_139
    cfg.train.reduce_dtype = "bfloat16"
    cfg.train.loss_chunk_tokens = 4096
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000
    return cfg
