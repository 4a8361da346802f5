"""What the collectives of a compiled step send, by kind, hidden or not, within slices and across."""

# ruff: noqa: E501 (a line of HLO is one line)

import pytest
from hlo_texts import SCATTER, collective, cost

# Collectives: 1,000 float32 numbers are 4,000 bytes.

PLAIN = [
    # Of the result of 4,000 bytes, a device lacks 3/4, and sends as much.
    (
        "%r = f32[1000] all-gather(%q), replica_groups=[2,4]<=[8], dimensions={0}",
        "all-gather",
        4000,
        3000,
        0,
    ),
    (
        "%r = (f32[250], f32[1000]) all-gather-start(%q), replica_groups=[2,4]<=[8]",
        "all-gather",
        4000,
        3000,
        3000,
    ),
    (
        "%r = f32[500] reduce-scatter(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum",
        "reduce-scatter",
        4000,
        2000,
        0,
    ),
    (
        "%r = f32[1000] all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%sum",
        "all-reduce",
        4000,
        6000,
        0,
    ),
    (
        "%r = f32[1000] all-reduce-start(%x), replica_groups={}, to_apply=%sum",
        "all-reduce",
        4000,
        7000,
        7000,
    ),
    (
        "%r = f32[1000] all-to-all(%x), replica_groups=[1,8]<=[8], dimensions={0}",
        "all-to-all",
        4000,
        3500,
        0,
    ),
    (
        "%r = (f32[1000], f32[1000], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}",
        "collective-permute",
        4000,
        4000,
        4000,
    ),
]


@pytest.mark.parametrize(("line", "kind", "payload", "wire", "hidden"), PLAIN)
def test_a_collective_sends_what_its_kind_must(line, kind, payload, wire, hidden):
    found = cost(
        f"  %x = f32[1000] parameter(0)\n  %q = f32[250] parameter(1)\n  {line}\n  ROOT %t = () tuple()"
    )
    row = collective(found, kind)
    assert (row.in_loop, row.count) == (False, 1)
    assert (row.payload_bytes, row.wire_bytes, row.hidden_wire_bytes) == (payload, wire, hidden)
    assert tuple(found.links) == (wire, wire - hidden)


def test_groups_that_are_not_understood_are_said():
    found = cost(
        "  %x = f32[1000] parameter(0)\n  ROOT %r = f32[1000] all-reduce(%x), replica_groups=?, to_apply=%sum"
    )
    assert collective(found, "all-reduce").wire_bytes == 7000
    assert found.unknown == ("groups of r: taken as all 8 devices",)


def test_an_all_reduce_of_which_a_fusion_keeps_a_slice_is_a_reduce_scatter():
    entry = """
  %x = f32[1000] parameter(0)
  ROOT %r = f32[250] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"""
    found = cost(entry, SCATTER)
    row = collective(found, "reduce-scatter")
    assert (row.payload_bytes, row.wire_bytes, row.as_written_wire_bytes) == (4000, 3000, 6000)
    assert (tuple(found.links), tuple(found.as_written)) == ((3000, 3000), (6000, 6000))
    # Kept by halves: scattered over two (1/2 sent), then the other two sum 2,000 bytes (2 x 1/2 of them).
    halves = cost(entry.replace("250", "500"), SCATTER.replace("250", "500"))
    assert collective(halves, "reduce-scatter").wire_bytes == 2000 + 2000


def test_an_all_reduce_of_which_something_keeps_the_whole_is_one():
    others = SCATTER.replace("ROOT %mine", "%mine").replace(
        "\n}", "\n  ROOT %both = (f32[250], f32[1000]) tuple(%mine, %sums)\n}"
    )
    entry = """
  %x = f32[1000] parameter(0)
  ROOT %r = (f32[250], f32[1000]) fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"""
    assert [row.kind for row in cost(entry, others).collectives] == ["all-reduce"]


ASYNC = """
%{name} (p.{name}: f32[250]) -> f32[1000] {{
  %p.{name} = f32[250] parameter(0)
  ROOT %g.{name} = f32[1000] all-gather(%p.{name}), channel_id={channel}, replica_groups=[2,4]<=[8], dimensions={{0}}
}}
"""


def test_a_collective_fused_asynchronously_counts_once_where_it_starts():
    names = ("first", "async_collective_fusion.2", "last")
    others = "".join(ASYNC.format(name=name, channel=5) for name in names)
    chain = """
  %async-collective-start{n} = f32[1000] fusion(%x), kind=kCustom, calls=%first
  %fusion{n} = f32[1000] fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
  %async-collective-done{n} = f32[1000] fusion(%x), kind=kCustom, calls=%last"""
    entry = "  %x = f32[250] parameter(0)" + chain.format(n="")
    row = collective(cost(entry, others), "all-gather")
    assert (row.count, row.wire_bytes, row.hidden_wire_bytes) == (1, 3000, 3000)
    # Twice on one channel: a loop that was unrolled.
    row = collective(cost(entry + chain.format(n=".1"), others), "all-gather")
    assert (row.count, row.hidden_wire_bytes) == (2, 6000)


def test_collectives_that_share_a_channel_all_count():
    """shard_map gives the same channel to all of its collectives."""
    found = cost("""
  %x = f32[1000] parameter(0)
  %r = f32[250] reduce-scatter(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %s = f32[125] reduce-scatter(%r), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%sum""")
    row = collective(found, "reduce-scatter")
    assert (row.count, row.wire_bytes) == (2, 3000 + 500)


def test_fused_reduce_scatters_that_share_a_channel_all_count():
    entry = """
  %x = f32[1000] parameter(0)
  %r = f32[250] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %s = f32[250] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"""
    assert collective(cost(entry, SCATTER), "reduce-scatter").count == 2


def test_what_runs_on_the_sparsecores_is_hidden():
    others = ASYNC.format(name="offloaded", channel=5).replace("\n}", '\n}, execution_thread="sparsecore"')
    for opcode, key in (("call-start", "to_apply"), ("async-start", "calls")):
        row = collective(
            cost(
                f"""
  %x = f32[250] parameter(0)
  %s = ((f32[250]), f32[1000], u32[]) {opcode}(%x), {key}=%offloaded
  ROOT %d = f32[1000] {opcode.replace("start", "done")}(%s)""",
                others,
            ),
            "all-gather",
        )
        assert (row.count, row.wire_bytes, row.hidden_wire_bytes) == (1, 3000, 3000)


def test_groups_over_several_slices_are_counted_apart_and_not_timed():
    entry = """
  %x = f32[1000] parameter(0)
  %a = f32[1000] all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%sum
  %b = f32[1000] all-reduce(%x), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%sum
  ROOT %p = f32[1000] collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}"""
    found = cost(entry, devices_per_slice=4)
    row = collective(found, "all-reduce")
    assert (row.wire_bytes, row.across_slices_bytes) == (6000 + 4000, 4000)
    ring = collective(found, "collective-permute")
    assert (ring.wire_bytes, ring.across_slices_bytes) == (4000, 1000)  # 3 -> 4 and 7 -> 0, of 8 pairs
    assert tuple(found.links) == (6000 + 3000, 6000 + 3000)
    alone = cost(entry)
    assert [row.across_slices_bytes for row in alone.collectives] == [0, 0]
    assert tuple(alone.links) == (14000, 14000)


def test_what_a_slice_sends_to_others_through_its_host_counts():
    found = cost("""
  %x = bf16[512,8,128] parameter(0)
  %t = token[] after-all()
  %send.1 = (bf16[512,8,128], u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (bf16[512,8,128], u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %d = token[] send-done(%send.1), channel_id=2, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %r = (bf16[512,8,128], token[]) recv-done(%recv.1), channel_id=1""")
    row = collective(found, "all-reduce")
    size = 512 * 8 * 128 * 2  # an all-reduce of two sends 2 x 1/2 of it
    assert (row.payload_bytes, row.wire_bytes, row.across_slices_bytes) == (size, size, size)
    assert tuple(found.links) == (0, 0)
