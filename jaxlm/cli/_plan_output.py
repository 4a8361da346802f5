"""--json and --html of every `jaxlm plan`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jaxlm.plan.report import Report, print_report, to_html, to_json
from jaxlm.types import UserError


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that say where a report goes."""
    parser.add_argument("--json", action="store_true", help="print numbers as JSON instead of tables")
    parser.add_argument("--html", metavar="FILE", help="also write the tables as one HTML page")


def emit(report: Report, args: argparse.Namespace) -> None:
    """Prints the report, and writes --html. Errors: UserError for a file that cannot be written."""
    if args.html:
        try:
            Path(args.html).write_text(to_html(report), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--html={args.html} cannot be written: {error.strerror}.") from None
    if args.json:
        print(to_json(report))
    else:
        print_report(report, sys.stdout)
