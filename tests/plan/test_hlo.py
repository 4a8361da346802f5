"""The text of a compiled module: its lines, the trips of its loops, the groups of its collectives."""

# ruff: noqa: E501 (a line of HLO is one line)

import math

import pytest

from jaxlm.plan.hlo import Array, arrays_of, dtype_bytes, parse
from jaxlm.plan.hlo_collectives import replica_groups
from jaxlm.plan.hlo_loops import MAX_TRIPS, Integers, trips
from jaxlm.types import UserError

PALLAS = """HloModule jit_f, is_scheduled=true, replica_count=2, num_partitions=4

FileNames
1 "step.py"

%offloaded (p.0: f32[8]) -> f32[8] {
  %p.0 = f32[8]{0} parameter(0)
  ROOT %twice = f32[8]{0} add(%p.0, %p.0)
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8], y: (s32[], bf16[2,3])) -> f32[8] {
  %x = f32[8]{0:T(128)S(1)} parameter(0), metadata={op_name="a (b) = c"}
  %splash.1 = (f32[8]{0}, /*index=1*/bf16[2,3]{1,0:T(8,128)(2,1)}) custom-call(%x, /*index=1*/%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"

}}, metadata={op_name="k"}
  ROOT %y.clone-1 = f32[8]{0} get-tuple-element(%splash.1), index=0
}
"""


def test_lines_of_kernels_and_computations_of_other_cores_are_read():
    module = parse(PALLAS)
    assert list(module.computations) == ["offloaded", "main"]
    assert module.num_devices == 8
    entry = module.entry
    assert list(entry.instructions) == ["x", "splash.1", "y.clone-1"]
    kernel = entry.instructions["splash.1"]
    assert kernel.operands == ("x", "x")
    assert kernel.arrays == (Array("f32", (8,), 0), Array("bf16", (2, 3), 0))
    assert "block_q" in kernel.attributes
    assert 'op_name="k"' in kernel.attributes
    assert entry.instructions["x"].arrays[0].memory_space == 1
    assert entry.root.name == "y.clone-1"
    assert module.computations["offloaded"].root.opcode == "add"


@pytest.mark.parametrize(
    ("shape", "num_bytes"),
    [
        ("f32[2,3]{1,0:T(8,128)}", 24),
        ("(bf16[4]{0}, u32[], token[])", 12),
        ("s4[10]", 5),
        ("f8e4m3fn[10]", 10),
        ("pred[7]{0:T(512)(4,1)}", 7),
        ("c64[2]", 16),
        ("f32[<=4,2]", 32),
        ("()", 0),
    ],
)
def test_a_shape_has_its_bytes(shape, num_bytes):
    assert sum(array.num_bytes for array in arrays_of(shape)) == num_bytes


def test_types_that_hold_nothing_have_no_bytes():
    assert (dtype_bytes("token"), dtype_bytes("opaque"), dtype_bytes("bf16")) == (0, 0, 2)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no ENTRY"),
        ("HloModule jit_f\n", "no ENTRY"),
        (PALLAS.rstrip("}\n"), "ends inside a computation"),
        (PALLAS.replace("add(%p.0, %p.0)", "add(%p.0, %p.0"), "not closed"),
    ],
)
def test_text_that_is_no_module_is_refused(text, what):
    with pytest.raises(UserError, match=what):
        parse(text)


LOOP = """HloModule m

%add_one (p: (s32[])) -> s32[] {{
  %p = s32[] parameter(0)
  %one = s32[] constant({step})
  ROOT %sum = s32[] add(%p, %one)
}}

%body (t: (s32[], f32[4], s32[])) -> (s32[], f32[4], s32[]) {{
  %t = (s32[], f32[4], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[4] get-tuple-element(%t), index=1
  %n = s32[] get-tuple-element(%t), index=2
  %n.copy = s32[] copy(%n)
  %step = s32[] constant({step})
  %next = s32[] {next}
  ROOT %out = (s32[], f32[4], s32[]) tuple(%next, %x, %n.copy)
}}

%less (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %c = pred[] compare(%b, %a), direction=GT
}}

%cond (t.1: (s32[], f32[4], s32[])) -> pred[] {{
  %t.1 = (s32[], f32[4], s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %i.2 = s32[] copy(%i.1)
  %n.1 = s32[] get-tuple-element(%t.1), index=2
  %ten = s32[] constant(10)
  ROOT %go = pred[] {condition}
}}

ENTRY %main (x.0: f32[4], s: s32[]) -> f32[4] {{
  %x.0 = f32[4] parameter(0)
  %s = s32[] parameter(1)
  %start = s32[] {start}
  %limit = s32[] constant(12)
  %limit.start = (s32[], s32[], u32[]) copy-start(%limit)
  %limit.done = s32[] copy-done(%limit.start)
  %init = (s32[], f32[4], s32[]) tuple(%start, %x.0, %limit.done)
  %w = (s32[], f32[4], s32[]) while(%init), condition=%cond, body=%body{attributes}
  ROOT %r = f32[4] get-tuple-element(%w), index=1
}}
"""
PLAIN = {
    "step": 1,
    "next": "add(%i, %step)",
    "condition": "compare(%i.2, %ten), direction=LT",
    "start": "constant(0)",
    "attributes": "",
}


@pytest.mark.parametrize(
    ("changed", "trip_count"),
    [
        ({}, 10),
        ({"start": "constant(3)"}, 7),
        ({"step": 3}, 4),  # 0, 3, 6, 9
        ({"condition": "compare(%i.2, %ten), direction=LE"}, 11),
        ({"condition": "compare(%i.2, %ten), direction=NE"}, 10),
        ({"condition": "compare(%ten, %i.2), direction=GT"}, 10),
        ({"condition": "compare(%i.2, %n.1), direction=LT"}, 12),  # a limit that is handed on in the tuple
        ({"condition": "fusion(%i.2, %n.1), kind=kLoop, calls=%less"}, 12),
        ({"next": "fusion(%i), kind=kLoop, calls=%add_one"}, 10),
        (
            {
                "start": "constant(9)",
                "next": "subtract(%i, %step)",
                "condition": "compare(%i.2, %ten), direction=LT",
                "attributes": ', backend_config={"known_trip_count":{"n":"5"}}',
            },
            5,
        ),
        ({"start": "constant(10)"}, 0),
        ({"next": "multiply(%s.0, %step)"}, None),  # of something that is not there
        ({"step": 0}, None),  # for ever
    ],
)
def test_a_loop_runs_as_often_as_its_condition_holds(changed, trip_count):
    module = parse(LOOP.format(**(PLAIN | changed)))
    found = trips(Integers(module, module.entry), module.entry.instructions["w"])
    assert (found.trip_count, found.assumed_start) == (trip_count, False)


def test_a_first_counter_that_is_not_in_the_text_is_taken_as_0_and_said():
    module = parse(LOOP.format(**(PLAIN | {"start": "copy(%s)"})))
    found = trips(Integers(module, module.entry), module.entry.instructions["w"])
    assert (found.trip_count, found.assumed_start) == (10, True)


def test_a_first_counter_that_is_not_in_the_text_is_no_reason_to_count_nothing():
    text = LOOP.format(**(PLAIN | {"start": "copy(%s)", "condition": "compare(%i.2, %ten), direction=GT"}))
    module = parse(text)
    found = trips(Integers(module, module.entry), module.entry.instructions["w"])
    assert (found.trip_count, found.assumed_start) == (None, False)


@pytest.mark.parametrize("down", [False, True])
def test_a_loop_whose_limit_is_data_is_not_counted(down):
    changed = {"condition": "compare(%i.2, %n.1), direction=LT"}
    if down:
        changed = {
            "start": "constant(9)",
            "next": "subtract(%i, %step)",
            "condition": "compare(%i.2, %n.1), direction=GT",
        }
    text = LOOP.format(**(PLAIN | changed))
    module = parse(text.replace("%limit = s32[] constant(12)", "%limit = s32[] copy(%s)"))
    assert trips(Integers(module, module.entry), module.entry.instructions["w"]).trip_count is None


def test_what_a_loop_hands_on_is_known_inside_it_and_after_it():
    module = parse(LOOP.format(**PLAIN))
    known = Integers(module, module.entry)
    assert trips(known, module.entry.instructions["w"]).body.value("n") == 12
    assert known.element("w", 2) == 12
    assert known.element("w", 0) is None
    assert MAX_TRIPS >= 10_000


def grid(*groups):
    return tuple(map(tuple, groups))


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,1},{2,3}}", grid([0, 1], [2, 3])),
        ("{}", grid(range(8))),
        ("[2,4]<=[8]", grid(range(4), range(4, 8))),
        # 0..7 as 2 x 4, transposed: 0 4 1 5 2 6 3 7.
        ("[4,2]<=[2,4]T(1,0)", grid([0, 4], [1, 5], [2, 6], [3, 7])),
        ("[2,4]<=[2,2,2]T(2,0,1)", grid([0, 2, 4, 6], [1, 3, 5, 7])),
        ("mesh['a'=2,'b'=4] {'b'}", grid(range(4), range(4, 8))),
        ("mesh['a'=2,'b'=4] {'a'}", grid([0, 4], [1, 5], [2, 6], [3, 7])),
        ("mesh['a'=2,'b'=4,'c'=1] {'a','b'}", grid(range(8))),
        ("mesh['a'=2,'b'=4] {'b','a'}", grid([0, 4, 1, 5, 2, 6, 3, 7])),
        # Axis b of 4 is 2 x 2: its outer half strides 2, its inner half 1.
        ("mesh['a'=2,'b'=4] {'b':(1)2}", grid([0, 2], [1, 3], [4, 6], [5, 7])),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", grid([0, 1], [2, 3], [4, 5], [6, 7])),
        ("mesh['a'=2,'b'=4] {'a','b':(2)2}", grid([0, 1, 4, 5], [2, 3, 6, 7])),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", grid([3, 2], [1, 0])),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", grid([0, 1], [2, 3], [4, 5], [6, 7])),
        ("mesh['a'=2] {'q'}", None),
        ("something else", None),
    ],
)
def test_groups_are_read_whichever_way_they_are_written(written, groups):
    found = replica_groups(f", channel_id=1, replica_groups={written}, dimensions={{0}}", 8)
    assert found == groups


def test_groups_of_a_pod_cover_each_device_once():
    groups = replica_groups("replica_groups=mesh['data'=24,'fsdp'=64,'tensor'=4] {'data','tensor'}", 6144)
    assert groups is not None
    assert {len(group) for group in groups} == {96}
    assert sorted(device for group in groups for device in group) == [*range(6144)]
    assert math.prod((24, 64, 4)) == 6144
