"""Check whether a run could start here: versions, devices, disk, data, checkpoints, the other processes.

jaxlm doctor --config=quickstart --workdir=runs/quickstart
jaxlm doctor --workdir=runs/mine                    the run that is there, with its own config
jaxlm doctor                                        this machine alone

Of several processes each runs this command, with the flags of `jaxlm train`; then they also check that all come, have
the same code, config and data, and that their clocks agree.

One line for each check: ok, warn (a run can start) or FAIL (it could not, or would lose something), and the way out.
Nothing is compiled, and nothing changed, but for a small file that is written and deleted again in the workdir and the
cache. Every check has a time limit. Exit code 2 where one FAILs, on any process; else 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING

from jaxlm.cli._cluster import add_cluster_flags, cluster_of
from jaxlm.types import UserError

if TYPE_CHECKING:
    from jaxlm.doctor.check import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags beside --config."""
    parser.add_argument("--workdir", help="folder of the run, which need not be there yet")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_cluster_flags(parser, timeout_s=60)


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Runs all checks."""
    if args.workdir == "":
        raise UserError("--workdir is empty: name a folder, such as runs/mine.")
    from jaxlm import processes
    from jaxlm.doctor.check import FAIL
    from jaxlm.doctor.examine import Examination
    from jaxlm.parallel import distributed

    def emit(result: Result) -> None:
        if not args.json:
            print(result.line(), flush=True)

    cluster = cluster_of(args)
    examination = Examination(config_argv, args.workdir, cluster, emit)
    own = examination.run()
    others = examination.gather()
    for result in others if processes.is_first() else ():
        emit(result)
    results = [*own, *(others if processes.is_first() else ())]
    code = 2 if any(result.status == FAIL for result in [*own, *others]) else 0
    if args.json:
        checks = [dict(zip(("name", "status", "text"), result)) for result in results]
        print(json.dumps({"exit_code": code, "process": processes.index(), "checks": checks}, indent=1))
    if any(result.is_late for result in own) or distributed.is_abandoned() or not processes.is_alone():
        # A thread that waits for ever, or JAX's own wait for the others, would keep this process.
        sys.stdout.flush()
        if processes.is_first() and not processes.is_alone():
            time.sleep(0.5)  # the store ends with this process: others may be about to read the end
        os._exit(code)
    return code
