"""Compile the train step of a run for TPUs that are not there: does it fit, how fast, how dear.

jaxlm compile --config=pretrain_llama2_7b_v5e256 --topology=v5e:16x16
jaxlm compile --config=pretrain_llama2_7b_v5e256 --topology=v5e:16x16 --num-slices=2 --config.mesh.data=2
jaxlm compile --config=quickstart --topology=cpu:8          memory and collectives on fake CPU devices
jaxlm compile --config=pretrain_llama2_7b_v5e256 --topology=v5e:16x16 --search --search-rows=2,4,8

It is the step that `jaxlm train` compiles, for any objective. No data is read and no TPU is needed, but its compiler:
pip install 'jaxlm[tpu]'. The exit code is 4 where the step does not fit.

With --search it compiles many ways to run the config (rows of a device at a time, model.remat, mesh, attention blocks),
keeps what came of each, and prints which are the fastest in how much memory; the same command goes on where it was
stopped. Rows of a device make data.global_batch_size, unless --search-keep-batch.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import re
import sys
import time
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from jaxlm.cli._compile_search import add_search_arguments, check_flags, search_main
from jaxlm.cli._plan_output import add_output_arguments, emit
from jaxlm.cli._plan_run import add_price_arguments, completed, config_name
from jaxlm.plan import prices, topology
from jaxlm.plan.compile_report import compile_report
from jaxlm.plan.compiled import Facts, Pricing
from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.step_cost import read_step, step_time
from jaxlm.plan.topology import Topology
from jaxlm.run import parse, resolve, resolve_mesh
from jaxlm.types import UserError

DOES_NOT_FIT = 4
"""Exit code."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "--topology", metavar="CHIP:SHAPE", help="what to compile for: v5e:16x16, v5p:4x4x4, cpu:8, ..."
    )
    parser.add_argument("--num-slices", type=int, default=1, help="slices of that shape (%(default)s)")
    parser.add_argument("--hlo", metavar="FILE", help="also write the compiled program, as text")
    add_price_arguments(parser)
    add_output_arguments(parser)
    add_search_arguments(parser)


def main(args: argparse.Namespace, config_argv: list[str]) -> int:
    """Lowers, compiles, reads what came of it, and says so."""
    check_flags(args)
    on = topology.parse(args.topology, args.num_slices)
    cfg, notes = completed(resolve(parse(config_argv)))
    given = config_name(config_argv)
    if not args.search:
        resolve_mesh(cfg, on.num_devices)
    check_writable("--hlo", args.hlo)
    check_writable("--html", args.html)
    if on.chip is not None:
        check_libtpu()
    if args.search:
        return search_main(args, cfg, on, config_argv, given, versions(on), notes)
    set_environment(on)

    pricing = Pricing(
        prices.load(args.prices), args.price, args.commitment, args.provider, datetime.date.today()
    )
    if on.chip is not None:
        pricing.of(on.chip)  # a price that there is not is refused before it takes minutes
    started = time.perf_counter()
    from jaxlm import run_compile

    run_compile.import_all()
    import_s = time.perf_counter() - started
    devices = run_compile.devices_of(on)
    lowered = run_compile.lower_step(cfg, devices)
    compiled = run_compile.compile_step(lowered)
    step = at = None
    if compiled.hlo is not None:
        # Without a chip only what is counted is used, which does not depend on it.
        chip = on.chip or CHIPS["v5e"]
        step = read_step(compiled.hlo, chip)
        at = None if on.chip is None else step_time(step, chip)
    facts = Facts(
        name=given,
        on=on,
        mesh=lowered.pieces.sizes,
        kernels=lowered.kernels,
        memory=compiled.memory,
        argument_parts_bytes=lowered.argument_parts_bytes,
        step=step,
        time=at,
        seconds={"import": import_s, "lower": lowered.seconds, "compile": compiled.seconds},
        versions=versions(on),
        stablehlo_sha256=lowered.sha256,
    )
    if args.hlo and compiled.hlo is None:
        notes.append(f"--hlo={args.hlo} is not written: the compiler made no program.")
    elif args.hlo:
        Path(args.hlo).write_text(str(compiled.hlo), encoding="utf-8")
    if run_compile.class_weights_of(cfg):
        notes.append("Weights of labels count as 1: their values come from the data, and change no size.")
    report = compile_report(cfg, facts, pricing, notes)
    emit(report, args)
    return DOES_NOT_FIT if report.data["memory"]["fits"] is False else 0


def check_writable(flag: str, path: str | None) -> None:
    """Raises UserError where a file cannot be written, before minutes of compiling."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    why = None
    if not folder.is_dir():
        why = f"there is no folder {folder}"
    elif Path(path).is_dir():
        why = "it is a folder"
    elif not os.access(path if Path(path).exists() else folder, os.W_OK):
        why = "permission denied"
    if why is not None:
        raise UserError(f"{flag}={path} cannot be written: {why}. Choose another place.")


def libtpu_of_jax() -> str:
    """The version of libtpu that this jax is made for, as pip takes it: libtpu==0.0.42.*"""
    needs = (re.fullmatch(r"(libtpu\s*[=<>~!][^;]*?)\s*;.*", line) for line in requires("jax") or ())
    return next((match[1] for match in needs if match), "libtpu")


def check_libtpu() -> None:
    """Raises UserError where the compiler of TPUs is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"The compiler of TPUs is not installed: pip install '{libtpu_of_jax()}' (what jax {version('jax')} is "
            "made for; it needs no TPU), or compile for --topology=cpu:8."
        )


def versions(on: Topology) -> dict[str, str]:
    """Of what compiled it."""
    found = {"jax": version("jax")}
    if on.chip is not None:
        try:
            found["libtpu"] = version("libtpu")
        except PackageNotFoundError:  # a build of one's own
            found["libtpu"] = "unknown"
    return found


def set_environment(on: Topology) -> None:
    """For this process, before JAX is imported: no TPU is looked for, and compilers may run side by side."""
    if "jax" in sys.modules:
        return  # whoever imported it has decided
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if on.chip is None:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={on.num_devices}"
        os.environ["XLA_FLAGS"] = flags.strip()
