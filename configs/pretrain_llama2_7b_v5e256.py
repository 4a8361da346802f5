"""Llama 2 7B, its own recipe, on a TPU v5e pod.

    gcloud compute tpus tpu-vm ssh POD --worker=all --command="jaxlm train --config=pretrain_llama2_7b_v5e256 \
        --workdir=gs://BUCKET/runs/llama2-7b --config.tokenizer.path=gs://BUCKET/llama2.model"
    jaxlm compile --config=pretrain_llama2_7b_v5e256 --topology=v5e:16x16

Table 1 and section 2.2 of arXiv:2307.09288: 2T tokens, 4M a step, context 4096, AdamW (0.9, 0.95, 1e-5), peak
3e-4 after 2000 steps of warm-up, cosine to 10%, weight decay 0.1, clipping at 1. The paper's corpus is not
public: the sources are those of `pretrain_size`, placeholders to point elsewhere.

Hardware: TPU v5e-256 (16 GB a chip), fsdp 256.
Predicted: 5.42 s a step in the compiler's cycles, MFU 66%, 11.0 of 15.8 GiB
(jax 0.11.1, libtpu 0.0.46.3, 2026-11-27).
Result: not run yet.
"""

from jaxlm import run
from jaxlm.models import sizes


def get_config():
    cfg = run.default_config()
    sizes.apply(cfg.model, "llama2-7b")
    cfg.model.dtype = "bfloat16"
    cfg.model.remat = "save_attention"

    sources = {"common_crawl": 60, "webtext": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    for name, percent in sources.items():
        cfg.data.sources[name] = dict(path=f"corpora/{name}", weight_tokens=percent, on_exhausted="repeat")
    cfg.data.seq_len = 4096
    cfg.data.global_batch_size = 1024
    cfg.data.packing = "best_fit"
    cfg.tokenizer.vocab_size = cfg.model.vocab_size

    cfg.optimizer.learning_rate = 3e-4
    cfg.optimizer.warmup_steps = 2000
    cfg.optimizer.eps = 1e-5
    cfg.train.num_steps = 476_837  # 2e12 tokens / (1024 x 4096)
    cfg.train.reduce_dtype = "bfloat16"
    cfg.train.loss_chunk_tokens = 2048
    cfg.train.eval_every_steps = 1000
    cfg.checkpoint.every_steps = 1000
    cfg.checkpoint.keep_every_steps = 25_000
    return cfg
