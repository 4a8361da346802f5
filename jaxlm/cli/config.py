"""Print a resolved config, compare two, or list every key.

jaxlm config --config=quickstart                        every key; * marks those that are not at their default
jaxlm config --config=quickstart --config.seed=1        with overrides, checked as `jaxlm train` would
jaxlm config --config=quickstart --diff=runs/mine       keys that differ; OTHER is a config or a workdir
jaxlm config --keys                                     every key with its type, default and meaning
jaxlm config --corpus --config=corpus_gpt3_like         of a config for `jaxlm corpus build`; also --corpus --keys
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import textwrap
from typing import Any

from jaxlm.config import ABSENT, diff, flatten, iterate_keys
from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `jaxlm config`."""
    parser.add_argument("--diff", metavar="OTHER", help="print only the keys in which OTHER differs")
    parser.add_argument(
        "--json", action="store_true", help="print JSON: nested, or {key: [this, other]} with --diff"
    )
    parser.add_argument("--keys", action="store_true", help="list every key with type, default and meaning")
    parser.add_argument("--corpus", action="store_true", help="of configs for `jaxlm corpus build`")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs `jaxlm config`."""
    if args.corpus:
        from jaxlm.corpus.raw.config import CorpusConfig as kind
        from jaxlm.corpus.raw.config import parse, resolve
    else:
        from jaxlm.run import RunConfig as kind
        from jaxlm.run import parse, resolve
    if args.keys:
        if config_argv or args.diff or args.json:
            raise UserError("--keys lists what every config has; it takes no other flag.")
        _print_keys(kind)
        return 0
    config = resolve(parse(config_argv))
    if args.diff is not None:
        _print_diff(config, resolve(parse([f"--config={args.diff}"])), args.json)
    elif args.json:
        print(json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False))
    else:
        _print_config(config)
    return 0


def _print_config(config: Any) -> None:
    defaults = {key.name: key.default for key in iterate_keys(type(config))}
    flat = flatten(config)
    width = max(map(len, flat))
    for key, value in flat.items():
        default = defaults[re.sub(r"^((?:data\.)?sources)\.\w+", r"\1.<name>", key)]
        mark, note = ("  ", "") if value == default else ("* ", f"  (default {default!r})")
        print(f"{mark}{key:<{width}} = {value!r}{note}")


def _print_diff(this: Any, other: Any, as_json: bool) -> None:
    differences = diff(this, other)
    if as_json:
        sides = {d.key: [None if side is ABSENT else side for side in (d.a, d.b)] for d in differences}
        print(json.dumps(sides, indent=2, ensure_ascii=False))
        return
    if not differences:
        print("No key differs.", file=sys.stderr)
    width = max((len(difference.key) for difference in differences), default=0)
    for difference in differences:
        print(f"{difference.key:<{width}} = {difference.a!r} -> {difference.b!r}")


def _print_keys(config: type) -> None:
    for key in iterate_keys(config):
        kind = key.spec.type.__name__ + (" | None" if key.spec.optional else "")
        print(f"{key.name}: {kind} = {key.default!r}")
        if key.doc:
            print(textwrap.fill(key.doc, 100, initial_indent="    ", subsequent_indent="    "))
