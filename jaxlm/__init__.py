"""jaxlm: pretrain and fine-tune language models in JAX.

A run is a pure function of (config, seed, step). Importing this package imports no JAX: the command line answers
at once, and a bad config is refused before a device is touched.
"""

__version__ = "0.1.0.dev0"
