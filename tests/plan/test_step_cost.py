"""What a compiled step costs: FLOPs, bytes, loops and times, on texts small enough to add up by hand."""

# ruff: noqa: E501 (a line of HLO is one line)

import gzip
import itertools
from pathlib import Path

import pytest
from hlo_texts import ROUND, SCATTER, V5E, collective, cost, module

from jaxlm.plan.hardware import CHIPS
from jaxlm.plan.step_cost import read_step, step_time
from jaxlm.types import UserError

# FLOPs.


def test_a_dot_has_two_flops_for_each_multiply_add():
    found = cost("""
  %a = bf16[3,5,7] parameter(0)
  %b = bf16[3,7,11] parameter(1)
  ROOT %c = f32[3,5,11] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}""")
    assert found.flops == 2 * 3 * 5 * 7 * 11
    assert found.hbm_bytes == 2 * 3 * 5 * 7 + 2 * 3 * 7 * 11 + 4 * 3 * 5 * 11


CONVOLUTIONS = [
    # A product of [4, 5] and [5, 6].
    ("bf16[4,6]", "bf16[4,5]", "bf16[5,6]", "dim_labels=bf_io->bf", 2 * 4 * 5 * 6),
    # Batch 1, 3 -> 2 features. Width 5, a window of 3 padded by 1: 2 + 3 + 3 + 3 + 2 = 13 taps on numbers.
    (
        "f32[1,5,2]",
        "f32[1,5,3]",
        "f32[3,3,2]",
        "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
        2 * 3 * 2 * 13,
    ),
    # Stride 2: windows from -1, 1 and 3, the last of which reaches past the end: 2 + 3 + 2.
    (
        "f32[1,3,2]",
        "f32[1,5,3]",
        "f32[3,3,2]",
        "window={size=3 stride=2 pad=1_1}, dim_labels=b0f_0io->b0f",
        2 * 3 * 2 * (2 + 3 + 2),
    ),
    # Input 0 _ 1 _ 2 (lhs_dilate 2), window of 2: each of 4 outputs meets one number.
    (
        "f32[1,4,1]",
        "f32[1,3,1]",
        "f32[2,1,1]",
        "window={size=2 lhs_dilate=2}, dim_labels=b0f_0io->b0f",
        2 * 4,
    ),
    # Taps 2 apart (rhs_dilate): places o and o + 2 of 5: 3 outputs, both taps.
    (
        "f32[1,3,1]",
        "f32[1,5,1]",
        "f32[2,1,1]",
        "window={size=2 rhs_dilate=2}, dim_labels=b0f_0io->b0f",
        2 * 3 * 2,
    ),
    # In groups of features, each kernel sees only the features of its group.
    (
        "f32[1,4,6]",
        "f32[1,4,6]",
        "f32[1,1,6]",
        "window={size=1}, dim_labels=b0f_0io->b0f, feature_group_count=6",
        2 * 4 * 6,
    ),
    # Windows of 3 x 3 around 2 x 2 numbers, padded by 1: each of 4 outputs meets all 4.
    (
        "f32[1,2,2,1]",
        "f32[1,2,2,1]",
        "f32[3,3,1,1]",
        "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
        2 * 4 * 4,
    ),
]


@pytest.mark.parametrize(("out", "left", "kernel", "attributes", "flops"), CONVOLUTIONS)
def test_a_convolution_counts_taps_on_numbers_not_on_padding(out, left, kernel, attributes, flops):
    found = cost(f"""
  %a = {left} parameter(0)
  %k = {kernel} parameter(1)
  ROOT %c = {out} convolution(%a, %k), {attributes}""")
    assert found.flops == flops


def test_taps_are_counted_as_a_loop_over_all_of_them_would():
    choices = itertools.product((1, 5, 8), (1, 3, 6), (1, 2, 3), (-1, 0, 2), (1, 2, 4), (1, 2))
    for width, taps, stride, padding, spread, dilation in choices:
        outputs = 6
        window = f"size={taps} stride={stride} pad={padding}_0 lhs_dilate={spread} rhs_dilate={dilation}"
        found = cost(f"""
  %a = f32[1,{width},1] parameter(0)
  %k = f32[{taps},1,1] parameter(1)
  ROOT %c = f32[1,{outputs},1] convolution(%a, %k), window={{{window}}}, dim_labels=b0f_0io->b0f""")
        places = [o * stride - padding + k * dilation for o in range(outputs) for k in range(taps)]
        hits = [p for p in places if p % spread == 0 and 0 <= p // spread < width]
        assert found.flops == 2 * len(hits), window


# Bytes.

FUSED = """
%fused (big: f32[100,8], small: f32[8], i: s32[]) -> f32[100,8] {
  %big = f32[100,8] parameter(0)
  %small = f32[8] parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,8] bitcast(%small)
  %zero = s32[] constant(0)
  ROOT %put = f32[100,8] dynamic-update-slice(%big, %row, %i, %zero)
}

%taken (big.1: f32[100,8], i.1: s32[], w: f32[8,3]) -> (f32[1,3], f32[1,8]) {
  %big.1 = f32[100,8] parameter(0)
  %i.1 = s32[] parameter(1)
  %w = f32[8,3] parameter(2)
  %zero.1 = s32[] constant(0)
  %view = f32[100,8] bitcast(%big.1)
  %row.1 = f32[1,8] dynamic-slice(%view, %i.1, %zero.1), dynamic_slice_sizes={1,8}
  %d = f32[1,3] dot(%row.1, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %both = (f32[1,3], f32[1,8]) tuple(%d, %row.1)
}
"""


def test_a_fusion_that_updates_a_slice_moves_the_slice():
    found = cost(
        """
  %big.0 = f32[100,8] parameter(0)
  %small.0 = f32[8]{0:T(128)S(1)} parameter(1)
  %i.0 = s32[]{:T(128)} parameter(2)
  ROOT %f = f32[100,8] fusion(%big.0, %small.0, %i.0), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"70"}}""",
        FUSED,
    )
    # The row is in VMEM, the index is 4 bytes in HBM, the row that is written 32.
    assert found.hbm_bytes == 4 + 32
    assert (found.cycles, found.matmul_cycles, found.flops) == (70, 0, 0)


def test_a_fusion_that_slices_reads_the_slice_and_has_the_flops_of_its_dots():
    found = cost(
        """
  %big.0 = f32[100,8] parameter(0)
  %i.0 = s32[]{:T(128)S(6)} parameter(1)
  %w.0 = f32[8,3] parameter(2)
  ROOT %f = (f32[1,3], f32[1,8]{1,0:T(8,128)S(1)}) fusion(%big.0, %i.0, %w.0), kind=kOutput, calls=%taken, backend_config={"estimated_cycles":"9"}""",
        FUSED,
    )
    assert (
        found.hbm_bytes == 32 + 4 * 24 + 12
    )  # a row, the weights, the first result; the second stays in VMEM
    assert found.flops == 2 * 8 * 3
    assert (found.cycles, found.matmul_cycles) == (9, 9)


def test_slices_and_copies_outside_fusions():
    found = cost("""
  %big.0 = f32[100,8] parameter(0)
  %i.0 = s32[] parameter(1)
  %s = f32[2,8] dynamic-slice(%big.0, %i.0, %i.0), dynamic_slice_sizes={2,8}
  %u = f32[100,8] dynamic-update-slice(%big.0, %s, %i.0, %i.0)
  %v = f32[100,8]{1,0:S(1)} copy(%u), backend_config={"estimated_cycles":"-1"}
  %start = (f32[2,8]{1,0:S(1)}, f32[2,8]{1,0}, u32[]{:S(2)}) copy-start(%s)
  %done = f32[2,8]{1,0:S(1)} copy-done(%start)
  %part = ((f32[100,8]{1,0}), f32[25,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%u), slice={[0:25], [0:8]}
  %off = f32[2,8]{1,0:S(5)} copy(%s)
  %send = ((f32[6,2,8]{2,1,0:S(5)}, f32[1,2,8]{2,1,0}, s32[]), f32[6,2,8]{2,1,0:S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%off, %s, %i.0)
  ROOT %t = () tuple()""")
    # Twice 64 for each slice; 3,200 into VMEM; 64 and 800 asynchronously.
    assert found.hbm_bytes == 128 + 128 + 3200 + 64 + 800
    assert found.host_bytes == 64 + 64
    assert found.cycles == 0


# Loops and branches.

LOOP = """
%body (t: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %t = (s32[], f32[4,4]) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%t), index=0
  %x = f32[4,4]{1,0:S(1)} get-tuple-element(%t), index=1
  %one = s32[]{:S(6)} constant(1)
  %next = s32[]{:S(6)} add(%i, %one)
  %y = f32[4,4]{1,0:S(1)} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %r = f32[4,4]{1,0:S(1)} all-reduce(%y), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %out = (s32[], f32[4,4]) tuple(%next, %r)
}

%cond (t.1: (s32[], f32[4,4])) -> pred[] {
  %t.1 = (s32[], f32[4,4]) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %n = s32[] constant(6)
  ROOT %go = pred[] compare(%i.1, %n), direction=LT
}

%outer (o: (s32[], f32[4,4], s32[])) -> (s32[], f32[4,4], s32[]) {
  %o = (s32[], f32[4,4], s32[]) parameter(0)
  %j = s32[]{:S(6)} get-tuple-element(%o), index=0
  %z = f32[4,4] get-tuple-element(%o), index=1
  %first = s32[]{:S(6)} get-tuple-element(%o), index=2
  %inner.init = (s32[], f32[4,4]) tuple(%first, %z)
  %inner = (s32[], f32[4,4]) while(%inner.init), condition=%cond, body=%body
  %z.1 = f32[4,4] get-tuple-element(%inner), index=1
  %one.1 = s32[]{:S(6)} constant(1)
  %j.1 = s32[]{:S(6)} add(%j, %one.1)
  ROOT %o.1 = (s32[], f32[4,4], s32[]) tuple(%j.1, %z.1, %first)
}

%outer.cond (o.2: (s32[], f32[4,4], s32[])) -> pred[] {
  %o.2 = (s32[], f32[4,4], s32[]) parameter(0)
  %j.2 = s32[] get-tuple-element(%o.2), index=0
  %three = s32[] constant(3)
  ROOT %go.1 = pred[] compare(%j.2, %three), direction=LT
}
"""


def test_a_loop_in_a_loop_counts_trips_times_trips():
    found = cost(
        """
  %zero = s32[] constant(0)
  %two = s32[] constant(2)
  %x.0 = f32[4,4] parameter(0)
  %init = (s32[], f32[4,4], s32[]) tuple(%zero, %x.0, %two)
  ROOT %w = (s32[], f32[4,4], s32[]) while(%init), condition=%outer.cond, body=%outer""",
        LOOP,
    )
    # The inner loop starts at 2, which the outer one hands on: 4 trips, 3 times.
    assert [tuple(loop) for loop in found.loops] == [("outer", 3, 1.0), ("body", 4, 3.0)]
    assert found.flops == 12 * 2 * 4 * 4 * 4
    row = collective(found, "all-reduce")
    assert (row.in_loop, row.count, row.payload_bytes) == (True, 12, 12 * 64)
    assert found.unknown == ()


def test_a_loop_that_depends_on_data_counts_once_and_is_named():
    found = cost(
        """
  %x.0 = f32[4,4] parameter(0)
  %s = s32[] parameter(1)
  %init = (s32[], f32[4,4]) tuple(%s, %x.0)
  ROOT %w = (s32[], f32[4,4]) while(%init), condition=%cond, body=%body""",
        LOOP.replace("%n = s32[] constant(6)", "%n = s32[] custom-call(%i.1)"),
    )
    assert found.flops == 2 * 64
    assert found.unknown == ("trip count of body: counted once",)


def test_of_a_conditional_the_dearest_branch_counts():
    branch = """
%{name} (p.{name}: f32[4,{width}]) -> f32[] {{
  %p.{name} = f32[4,{width}] parameter(0)
  ROOT %d.{name} = f32[4,4] dot(%p.{name}, %p.{name}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{1}}, backend_config={{"estimated_cycles":"{cycles}"}}
}}
"""
    others = branch.format(name="cheap", width=64, cycles=5) + branch.format(name="dear", width=2, cycles=7)
    for listed in (
        "branch_computations={%cheap, %dear}",
        "true_computation=%dear, false_computation=%cheap",
    ):
        found = cost(
            f"""
  %c = s32[] parameter(0)
  %x = f32[4,64] parameter(1)
  ROOT %r = f32[4,4] conditional(%c, %x, %x), {listed}""",
            others,
        )
        assert (found.cycles, found.flops) == (7, 2 * 4 * 4 * 2)


# Time. ROUND: 1,000 FLOP/s, 100 bytes/s of HBM, 10 bytes/s of links, 500 cycles/s.

TIMED = """
  %a = bf16[10,10]{1,0:S(1)} parameter(0)
  %h = bf16[100] parameter(1)
  %d = bf16[10,10]{1,0:S(1)} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}, backend_config={"estimated_cycles":"1500"}
  %e = bf16[100] negate(%h), backend_config={"estimated_cycles":"5000"}
  %k = bf16[4] custom-call(), custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"500","bytes_accessed":"10"}}
  %r = f32[2]{0:S(1)} all-reduce(%f), replica_groups=[4,2]<=[8], to_apply=%sum
  %f = f32[2]{0:S(1)} parameter(2)
  %g = (f32[2]{0:S(1)}, f32[4]{0:S(1)}) all-gather-start(%f), replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %t = () tuple()"""


def test_three_step_times_add_up():
    found = step_time(read_step(module(TIMED), ROUND), ROUND)
    # The dot: 2,000 FLOPs are 2 s, its cycles 3 s. The negation: 400 bytes are 4 s, its cycles 10 s. The kernel: 0.5 s
    # at the peak, 1 s at half of it. The all-reduce sends 8 bytes in 0.8 s, the all-gather 8 bytes, hidden.
    assert found.compute_s == pytest.approx(2 + 0.5)
    assert found.hbm_s == pytest.approx(4)
    assert found.wire_s == pytest.approx(1.6)
    assert found.exposed_wire_s == pytest.approx(0.8)
    assert found.roofline_s == pytest.approx(2.5 + 4 + 0.8)
    assert found.hybrid_s == pytest.approx(3 + 4 + 1 + 0.8)
    assert found.cycles_s == pytest.approx(3 + 10 + 1 + 0.8)
    assert found.bound == "memory"


def test_the_hybrid_times_a_product_by_its_cycles_even_where_hbm_bounds_it():
    text = module("""
  %a = bf16[1,1000] parameter(0)
  ROOT %d = f32[1,1]{1,0:S(1)} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}, backend_config={"estimated_cycles":"3000"}""")
    found = step_time(read_step(text, ROUND), ROUND)
    # 2,000 FLOPs are 2 s, 4,000 bytes 40 s, 3,000 cycles 6 s.
    assert (found.compute_s, found.hbm_s) == (0, pytest.approx(40))
    assert found.hybrid_s == found.cycles_s == pytest.approx(6)


def test_no_step_is_shorter_than_its_collectives():
    text = module(TIMED.replace("(f32[2]{0:S(1)}, f32[4]{0:S(1)})", "(f32[2]{0:S(1)}, f32[400]{0:S(1)})"))
    found = step_time(read_step(text, ROUND), ROUND)
    assert found.wire_s == pytest.approx(80.8)
    assert found.roofline_s == found.hybrid_s == found.cycles_s == found.wire_s
    assert found.bound == "network"


def test_as_written_a_reduce_scatter_takes_the_time_of_an_all_reduce():
    text = module(
        "  %x = f32[1000] parameter(0)\n  ROOT %r = f32[250] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
        SCATTER,
    )
    found = read_step(text, ROUND)
    assert step_time(found, ROUND).wire_s == pytest.approx(300)
    assert step_time(found, ROUND, as_written=True).wire_s == pytest.approx(600)


def test_without_cycles_or_a_clock_there_is_only_the_roofline():
    text = module(TIMED).replace("estimated_cycles", "nothing")
    found = step_time(read_step(text, ROUND), ROUND)
    assert (found.hybrid_s, found.cycles_s) == (None, None)
    assert found.roofline_s == pytest.approx(7.3)
    gpu = CHIPS["h100"]
    assert step_time(read_step(module(TIMED), gpu), gpu).cycles_s is None


def test_half_of_a_megacore_has_half_of_its_peak():
    text, v4 = module(TIMED), CHIPS["v4"]
    whole, half = (read_step(text, v4, num_cores=cores) for cores in (2, 1))
    assert half.compute_s == pytest.approx(2 * whole.compute_s)
    assert step_time(half, v4, num_cores=1).wire_s == pytest.approx(2 * step_time(whole, v4).wire_s)


def test_text_that_is_no_module_is_refused():
    with pytest.raises(UserError, match="compiled.as_text"):
        read_step("nothing", V5E)


def test_a_real_step_of_two_slices_adds_up():
    """`fsdp_step` of test_step_cost_tpu.py, which says how it was compiled; cycles are the sum of the compiler's."""
    text = gzip.decompress(Path(__file__).with_name("step_fsdp_two_slices.hlo.gz").read_bytes()).decode()
    found = read_step(text, CHIPS["v6e"])
    product, layer = 2 * 1024 * 2048 * 2048, 2 * 2048 * 2048
    assert found.flops == 4 * 4 * product  # forward, again, and twice backward
    rows = {(row.kind, row.in_loop): row for row in found.collectives}
    gathered = [rows["all-gather", in_loop] for in_loop in (False, True)]
    # Eight times a layer's weights in bfloat16, of which one is gathered outside: the last turn of a loop, peeled off.
    assert [row.count for row in gathered] == [1, 7]
    assert sum(row.wire_bytes for row in gathered) == 8 * layer * 7 / 8
    assert sum(rows["reduce-scatter", in_loop].wire_bytes for in_loop in (False, True)) == 4 * layer * 7 / 8
    crossing = [rows["all-reduce", in_loop] for in_loop in (False, True)]
    assert sum(row.across_slices_bytes for row in crossing) == 4 * layer / 8
    assert found.links.all_bytes == 12 * layer * 7 / 8
    assert [(loop.trip_count, loop.entered) for loop in found.loops] == [(4, 1), (3, 1)]
    assert (found.cycles, found.hbm_bytes) == (642143, 52428976)
    assert (found.unknown, found.uncosted, found.host_bytes) == ((), {}, 0)


def waits(entry, others=""):
    """Seconds that are waited for asynchronous collectives, and all that are not hidden."""
    read = read_step(module(entry, others), ROUND)
    return read.waited_s, step_time(read, ROUND).exposed_wire_s


START = "(f32[2]{0:S(1)}, f32[4]{0:S(1)}) all-gather-start(%f), replica_groups=[4,2]<=[8], dimensions={0}"  # 0.8 s
END = "f32[4]{0:S(1)} all-gather-done"
WORK = '  %w = bf16[4]{0:S(1)} negate(%f), backend_config={"estimated_cycles":"CYCLES"}\n'


@pytest.mark.parametrize(("cycles", "waited_s"), [(400, 0.0), (150, 0.5), (0, 0.8)])
def test_a_collective_hides_behind_what_is_scheduled_before_its_end(cycles, waited_s):
    work = WORK.replace("CYCLES", str(cycles))
    entry = f"  %f = f32[2]{{0:S(1)}} parameter(0)\n  %s = {START}\n{work}  ROOT %d = {END}(%s)"
    assert waits(entry) == (pytest.approx(waited_s), pytest.approx(waited_s))


def test_work_behind_the_end_hides_nothing():
    work = WORK.replace("CYCLES", "5000")
    entry = f"  %f = f32[2]{{0:S(1)}} parameter(0)\n  %s = {START}\n  %d = {END}(%s)\n{work}  ROOT %t = () tuple()"
    assert waits(entry)[0] == pytest.approx(0.8)


def test_the_network_sends_one_collective_after_the_other():
    work = WORK.replace("CYCLES", "500")
    entry = f"""
  %f = f32[2]{{0:S(1)}} parameter(0)
  %s.1 = {START}
  %s.2 = {START}
  %u = token[] all-gather-update(%s.2)
{work}
  %d.1 = {END}(%s.1)
  %d.2 = {END}(%u)
  ROOT %t = () tuple()"""
    assert waits(entry)[0] == pytest.approx(0.6)  # 1.6 s for both, behind a second of work


def test_what_the_other_cores_send_is_waited_for_too_in_every_trip_of_a_loop():
    others = """
%gather (p: f32[2]) -> f32[4] {
  %p = f32[2]{0:S(1)} parameter(0)
  ROOT %all = f32[4]{0:S(1)} all-gather(%p), replica_groups=[4,2]<=[8], dimensions={0}
}
%body (b: (s32[], f32[2])) -> (s32[], f32[2]) {
  %b = (s32[], f32[2]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %f = f32[2]{0:S(1)} get-tuple-element(%b), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %s = ((), s32[]) call-start(), async_execution_thread="sparsecore", to_apply=%gather
  %w = bf16[4]{0:S(1)} negate(%f), backend_config={"estimated_cycles":"100"}
  %d = () call-done(%s)
  ROOT %r = (s32[], f32[2]) tuple(%next, %f)
}
%condition (c: (s32[], f32[2])) -> pred[] {
  %c = (s32[], f32[2]) parameter(0)
  %at = s32[] get-tuple-element(%c), index=0
  %last = s32[] constant(3)
  ROOT %go = pred[] compare(%at, %last), direction=LT
}
"""
    entry = """
  %zero = s32[] constant(0)
  %f = f32[2]{0:S(1)} parameter(0)
  %x = (s32[], f32[2]) tuple(%zero, %f)
  ROOT %loop = (s32[], f32[2]) while(%x), condition=%condition, body=%body"""
    assert waits(entry, others)[0] == pytest.approx(3 * (0.8 - 0.2))
