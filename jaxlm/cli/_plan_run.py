"""`jaxlm plan --config=...`: one run."""

from __future__ import annotations

import argparse

from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `jaxlm plan` itself."""


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Plans the run of a config."""
    if not config_argv:
        raise UserError("Give what to plan: --config=NAME_OR_PATH, or a command; see `jaxlm plan --help`.")
    return 0
