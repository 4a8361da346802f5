"""A config for tests of configs: unlike those in configs/, nobody tunes it."""

from jaxlm import run


def get_config():
    cfg = run.default_config()
    for name, weight in (("topics", 0.5), ("docstrings", 0.4), ("licences", 0.1)):
        cfg.data.sources[name] = {
            "path": f"embedded:{name}",
            "weight_tokens": weight,
            "on_exhausted": "repeat",
        }
    cfg.data.seq_len = 128
    cfg.data.global_batch_size = 16
    cfg.model.embed_dim = 192
    cfg.model.num_kv_heads = 2
    cfg.optimizer.warmup_steps = 50
    cfg.train.num_steps = 600
    return cfg
