"""The composition root."""

from jaxlm.runconfig import (
    MAY_CHANGE,
    RunConfig,
    default_config,
    load_config,
    parse,
    resolve,
    resolve_mesh,
    restart_differences,
    save_config,
)

__all__ = [
    "MAY_CHANGE",
    "RunConfig",
    "default_config",
    "load_config",
    "parse",
    "resolve",
    "resolve_mesh",
    "restart_differences",
    "save_config",
]
