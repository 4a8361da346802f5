"""The plan of every pod config is near what the TPU's compiler made of it: memory, seconds, FLOPs, bytes on the wire.

Renew, after the model or the compiler has changed: python bench/pods.py --out=FOLDER && python bench/pods_golden.py
FOLDER
"""

import functools
import json
from pathlib import Path

import pytest

from jaxlm.cli._plan_run import completed
from jaxlm.plan import memory, step_products, step_time
from jaxlm.plan.topology import parse as parse_topology
from jaxlm.run import parse, resolve

COMPILED = json.loads((Path(__file__).parent / "pods_compiled.json").read_text(encoding="utf-8"))
TIMED = [name for name, row in COMPILED.items() if row["cycles_s"]]
WHOLE = [name for name in TIMED if "lora" not in name]


@functools.cache
def planned(name):
    """(bytes, step, FLOPs) of the config as it was compiled."""
    cfg, _ = completed(resolve(parse([f"--config={name}"])))
    row = COMPILED[name]
    on = parse_topology(row["topology"], row["num_slices"])
    found = memory.predict(cfg, row["mesh"], on.num_devices).total
    step = step_time.predict_step(cfg, on.chip, row["mesh"], on.shape, on.num_slices)
    return found, step, step_products.products(cfg, row["mesh"]).flops


def test_there_are_enough_configs_to_say_something():
    assert len(COMPILED) >= 8
    assert {row["topology"].partition(":")[0] for row in COMPILED.values()} >= {"v5e", "v5p", "v6e"}


@pytest.mark.parametrize("name", COMPILED)
def test_memory_is_within_a_tenth_of_what_the_compiler_allots(name):  # pain 23
    assert planned(name)[0] == pytest.approx(COMPILED[name]["memory_bytes"], rel=0.10)


@pytest.mark.parametrize("name", TIMED)
def test_seconds_are_within_15_percent_of_the_compilers_cycles(name):
    assert planned(name)[1].step_s == pytest.approx(COMPILED[name]["cycles_s"], rel=0.15)


def test_the_range_that_is_printed_holds_all_of_them():
    low, high = step_time.AGAINST_COMPILED
    for name in TIMED:
        assert 1 + low <= planned(name)[1].step_s / COMPILED[name]["cycles_s"] <= 1 + high, name


@pytest.mark.parametrize("name", COMPILED)
def test_flops_with_what_is_computed_again_are_those_that_the_program_executes(name):
    assert planned(name)[2] == pytest.approx(COMPILED[name]["flops"], rel=0.002)


@pytest.mark.parametrize("name", [name for name in WHOLE if COMPILED[name]["mesh"]["tensor"] == 1])
def test_bytes_on_the_wire_are_those_that_the_program_sends(name):
    rel = (
        0.15 if "mixtral" in name or "qwen" in name else 0.03
    )  # experts' gradients go through other collectives
    assert planned(name)[1].wire_s == pytest.approx(COMPILED[name]["wire_s"], rel=rel)
