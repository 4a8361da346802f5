"""A config of corpora for tests: sources are added by flags."""

from jaxlm.corpus.raw import config


def get_config():
    cfg = config.default_config()
    cfg.eval_fraction = 0.2
    for rule in ("url", "gopher_quality", "gopher_repetition", "c4", "fineweb"):
        cfg.filters[rule] = False
    return cfg
