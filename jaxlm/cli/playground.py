"""Try a trained model in the browser: tokens, distribution and pick step by step, chat, labels, two side by side.

jaxlm playground --run=runs/quickstart
jaxlm playground --run=runs/quickstart --run=runs/assistant      # two checkpoints side by side
jaxlm playground --run=runs/quickstart --step=100 --step=300     # two steps of one run

The page is served to this machine alone, and loads nothing from anywhere else. --host=0.0.0.0 serves it to others: to
those who have the address that is printed, with its token. Ctrl-C ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from jaxlm.types import UserError

PORT = 7860
MAX_MODELS = 2
PACKAGES = ("starlette", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        help="workdir of a training; a second one is compared with it",
    )
    parser.add_argument(
        "--step",
        action="append",
        type=int,
        help="checkpoint to use (default: the latest); one for each --run",
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: any free one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: this machine alone)"
    )


def checkpoints_of(runs: list[str], steps: list[int] | None) -> list[tuple[str, int | None]]:
    """(run, step) of each model. Errors: UserError where flags do not say which."""
    steps = steps or []
    if len(runs) == 1 and len(steps) == MAX_MODELS:
        runs = runs * MAX_MODELS
    if len(runs) > MAX_MODELS:
        raise UserError(
            f"{len(runs)} times --run: the playground compares {MAX_MODELS} checkpoints. Leave some out."
        )
    if steps and len(steps) != len(runs):
        raise UserError(
            f"{len(steps)} times --step for {len(runs)} runs: give one for each --run, in their order, or none for the "
            "latest."
        )
    found = list(zip(runs, steps or [None] * len(runs), strict=True))
    if len(found) == MAX_MODELS and os.path.abspath(found[0][0]) == os.path.abspath(found[1][0]) and (
        found[0][1] == found[1][1]
    ):  # fmt: skip
        raise UserError(
            f"--run={runs[0]} is given twice: compare it with another run, or two of its steps (--step=100 --step=300)."
        )
    return found


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Serves the page."""
    if config_argv:
        raise UserError(f"{config_argv[0]}: playground takes its config from --run.")
    checkpoints = checkpoints_of(args.run, args.step)
    if not all(importlib.util.find_spec(package) for package in PACKAGES):
        raise UserError("playground needs starlette and uvicorn: pip install 'jaxlm[playground]'.")
    from jaxlm.playground import serve

    with serve.bind(args.host, args.port) as sock:
        return open_models(checkpoints, sock)


def open_models(checkpoints: list[tuple[str, int | None]], sock) -> int:
    """Loads the models and serves them until Ctrl-C."""
    from jaxlm import run_loading
    from jaxlm.playground import serve
    from jaxlm.playground.app import make_app
    from jaxlm.playground.guard import Guard
    from jaxlm.playground.model import Model, check_together
    from jaxlm.playground.worker import Worker

    models: list[Model] = []
    for workdir, step in checkpoints:
        print(f"loading {workdir} ...", flush=True)
        model = Model(workdir, run_loading.load_run(workdir, step), models[0] if models else None)
        print(
            f"{workdir}, step {model.step}: {model.num_params:,} parameters; {', '.join(model.panels)}",
            flush=True,
        )
        models.append(model)
    check_together(models)
    worker = Worker()
    for model in models:
        for work in model.warm_up():
            worker.when_idle(work)
    token = None if serve.is_loopback(sock) else serve.new_token()
    if token is not None:
        print(
            f"jaxlm: warning: --host={sock.getsockname()[0]} lets other machines use these models, over HTTP that the "
            "network can read. Only the whole address below, with its token, opens the page: keep it to "
            "yourself.",
            file=sys.stderr,
        )
    print(f"playground: {serve.address_of(sock, token)}  (Ctrl-C ends)", flush=True)
    interrupted = True
    try:
        serve.serve(Guard(make_app(models, worker), token), sock)
        interrupted = False
    finally:
        if not worker.close(serve.CLOSING_S):
            if interrupted:
                print("jaxlm: interrupted.", file=sys.stderr)
            serve.leave(130 if interrupted else 0)
    return 0
