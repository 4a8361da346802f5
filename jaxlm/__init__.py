"""jaxlm: pretrain and fine-tune language models in JAX.

A run is a pure function of (config, seed, step). Importing this package imports no JAX: the command line answers
at once, and a bad config is refused before a device is touched.
"""

__version__: str


def __getattr__(name: str) -> str:
    """`__version__`, as it was when jaxlm was installed; read when asked for, since that takes 30 ms."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jaxlm")
    except PackageNotFoundError:
        return "0+not.installed"
