"""Repeat a bad step that a run has kept, and name what made its first NaN or infinity.

jaxlm replay runs/mine/bad_steps/step-000120.json

A step whose loss or gradients are not finite, or spike, is skipped; the run says so, and keeps a file. From the
checkpoint before it, the steps on the way are taken once more: they have the same batches and the same losses.
Exit code 0: the step did the same again; 5: it did not (other devices, another version).
"""

from __future__ import annotations

import argparse
import json

from jaxlm.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and where its run is."""
    parser.add_argument("file", help="of the folder bad_steps of a run")
    parser.add_argument("--workdir", help="of the run, where it is no longer where it was")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Replays."""
    if config_argv:
        raise UserError("replay takes no --config: the file knows its run.")
    import sys

    from jaxlm.report.events import encode_event
    from jaxlm.run_replay import COMPARED, replay

    result = replay(args.file, args.workdir, lambda line: print(line, file=sys.stderr))
    if args.json:
        fields = result._asdict() | {"is_same": result.is_same}
        event = json.loads(encode_event("replay", 0.0, fields.pop("step"), fields))
        print(json.dumps(event, indent=1))
    else:
        print(f"{'step ' + str(result.step):<12} {'in the run':>14} {'now':>14}")
        for name in COMPARED:
            print(f"{name:<12} {result.then[name]:>14.8g} {result.now[name]:>14.8g}")
        print(f"first bad    {result.first_bad}")
        print(f"on the way   {result.num_same} of {result.num_on_the_way} losses as in the event log")
        print("the same, bit for bit" if result.is_same else "NOT the same")
    return 0 if result.is_same else 5
