"""Check that an exported model is still what was exported.

jaxlm artifact verify exported        compares every byte with artifact.json; exit code 2 where anything differs
"""

from __future__ import annotations

import argparse
import json

from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their flags."""
    actions = parser.add_subparsers(dest="action", required=True)
    verify = actions.add_parser("verify", help="compare every byte with artifact.json")
    verify.add_argument("folder", metavar="DIR", help="what `jaxlm export-hf` wrote")
    verify.add_argument("--json", action="store_true", help="print what artifact.json says")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Verifies."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: artifact takes no config.")
    from jaxlm.interop.artifact import verify

    content, of_hub = verify(args.folder)
    if args.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        total = sum(entry["bytes"] for entry in content["files"].values())
        print(
            f"{args.folder}: {len(content['files'])} files, {total:,} bytes, as exported (step {content['step']:,})"
        )
        if of_hub:
            print(f"Not compared, since the hub added it: {', '.join(of_hub)}")
    return 0
