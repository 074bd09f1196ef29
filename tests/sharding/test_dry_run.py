"""What a dry run reads from a program, and says, without any compiler."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.analysis.hlo import parse
from fnn.sharding import dry_run, machines
from fnn.sharding.collectives import by_layer, groups_of, sends
from fnn.sharding.report import Array, Memory, Report

# --- which devices take part


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}, x=1", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1), x=1", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x=1", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        (
            "replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}, x=1",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
        ),
        ("source_target_pairs={{0,1},{1,0}}, channel_id=1", [[0, 1], [1, 0]]),
        ("replica_groups={}, x=1", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)  # fmt: skip
def test_groups_of_devices_are_read_in_every_notation(options, wanted):
    assert sorted(groups_of(options, 8).tolist()) == wanted


# --- collectives: a loop of five whose count stands in its condition, as TPUs have it

TEXT = """HloModule jit_step, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter (input: f32[64,128]) -> f32[16,128] {
  %input = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[64,128]{1,0:T(8,128)} all-reduce(%input), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %slice.1 = f32[16,128]{1,0:T(8,128)} slice(%all-reduce.9), slice={[0:16], [0:128]}
}

%body (p: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %p = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %w = f32[16,128]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %all-gather-start.1 = (f32[16,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) all-gather-start(%w), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="jit(step)/jvp(blocks)/while/body/up/dot_general" stack_frame_id=9}
  %all-gather-done.1 = f32[64,128]{1,0:T(8,128)} all-gather-done(%all-gather-start.1)
  %fusion.1 = f32[16,128]{1,0:T(8,128)} fusion(%all-gather-done.1), kind=kCustom, calls=%all-reduce-scatter, metadata={op_name="jit(step)/transpose(jvp(blocks))/while/body/up/dot_general" stack_frame_id=9}
  ROOT %tuple.1 = (s32[], f32[16,128]) tuple(%i, %fusion.1)
}

%condition (q: (s32[], f32[16,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %q = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[16,128], b: bf16[8]) -> f32[16,128] {
  %a = f32[16,128]{1,0:T(8,128)} parameter(0)
  %b = bf16[8]{0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[], f32[16,128]) tuple(%zero, %a)
  %while.1 = (s32[]{:T(128)}, f32[16,128]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body, metadata={op_name="jit(step)/jvp(blocks)/while"}
  %scaled = f32[16,128]{1,0:T(8,128)} multiply(%a, %a), metadata={op_name="jit(step)/optimizer/mul"}
  %joined = f32[2048]{0} bitcast(%scaled)
  %all-reduce.1 = f32[2048]{0} all-reduce(%joined), replica_groups={{0,1},{2,3}}, to_apply=%add
  %permuted = bf16[8]{0} collective-permute(%b), source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(step)/head/gather"}
  ROOT %out = f32[16,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


def test_collectives_have_bytes_times_and_a_cause():
    found = [(each.op, each.times, each.nbytes, each.sent) for each in sends(parse(TEXT), 4)]
    whole = 64 * 128 * 4
    assert found == [
        ("all-gather", 5, whole, whole * 3 // 4),
        ("reduce-scatter", 5, whole, whole * 3 // 4),
        ("all-reduce", 1, whole // 4, whole // 4),  # twice a half
        ("collective-permute", 1, 16, 16),
    ]
    names = [each.op_name for each in sends(parse(TEXT), 4)]
    assert "transpose" in names[1] and "optimizer" in names[2]  # of the fusion; of what is read


def test_collectives_by_layer_sum_those_of_one_cause():
    def place(op_name):
        return op_name.split("/")[1], "transpose" in op_name

    once = by_layer(parse(TEXT), 4, place, lambda groups: 1e3 * groups.shape[1])
    twice = by_layer(parse(TEXT.replace("{{0,1},{2,3}}", "[1,4]<=[4]")), 4, place, lambda _: 1.0)
    assert [row.op for row in once[:3]] == ["all-gather", "reduce-scatter", "all-reduce"]
    assert once[0].path == "jvp(blocks)" and once[0].times == 5
    assert once[0].seconds == once[0].sent / 4000
    assert sum(row.sent for row in twice) > sum(row.sent for row in once)


def test_an_unrolled_loop_counts_by_what_it_adds():
    """From 0 by 2 while below 5: three times."""
    root = "  ROOT %tuple.1 = (s32[], f32[16,128]) tuple("
    added = "  %two = s32[] constant(2)\n  %next = s32[] add(%i, %two)\n"
    by_two = TEXT.replace(f"{root}%i, ", f"{added}{root}%next, ")
    assert [each.times for each in sends(parse(by_two), 4)] == [3, 3, 1, 1]


def test_a_collective_in_a_chain_of_fusions_counts_once():
    """As often as the link outside the loop runs, whose other links are steps of the same one."""
    link = 'all-gather(%{}), channel_id=8, dimensions={{0}}, frontend_attributes={{chain_id="3"}}'
    inside = f"  %link.1 = f32[64,128]{{1,0}} {link.format('w')}\n"
    outside = f"  %link.2 = f32[64,128]{{1,0}} {link.format('a')}\n"
    chained = TEXT.replace("  %fusion.1 =", f"{inside}  %fusion.1 =")
    chained = chained.replace("  %joined =", f"{outside}  %joined =")
    found = [each.times for each in sends(parse(chained), 4) if each.op == "all-gather"]
    assert sorted(found) == [1, 5]


def test_a_loop_without_a_known_end_counts_once():
    assert sends(parse(TEXT.replace("direction=LT", "direction=NE")), 4)[0].times == 1
    known = TEXT.replace(
        "body=%body, ", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}, '
    )
    assert sends(parse(known), 4)[0].times == 7


# --- machines


@pytest.mark.parametrize("name", machines.MACHINES)
def test_figures_of_machines_are_in_their_units(name):
    machine = machines.MACHINES[name]
    assert 2**33 < machine.memory < 2**38
    assert 1e11 < machine.link < machine.memory_bandwidth < machine.flops < 1e16
    assert (machine.network is None) == (machine.platform == "tpu") == (not machine.target)
    assert f"device_memory_size: {machine.memory} " in machine.target or not machine.target
    assert machine.source


def test_devices_are_counted():
    cases = {
        "v5e:1x1": 1,
        "v5e:16x16": 256,
        "v5p:4x4x4": 64,
        "h100:8": 8,
        "h100:1x4x2": 8,
        "a100:3": 3,
    }
    assert {on: machines.topology(on).devices for on in cases} == cases
    assert machines.topology("h100:24").shape == "1x3x8"


@pytest.mark.parametrize(
    "on", ["v5e", "v9:2x2", "v5e:4", "v5p:4x4", "h100:0", "h100:12", "h100:2x4", 8]
)
def test_other_devices_are_refused(on):
    with pytest.raises(fnn.errors.OptionError, match="expected .*write|devices as"):
        machines.topology(on)


def test_a_mesh_of_devices_that_are_not_here_is_planned_like_one_that_is():
    net, tx = fnn.dense(64), fnn.optim.adam(1e-3)
    there = fnn.sharding.mesh(on="v5e:2x4", data=-1, model=2)
    assert dict(there.shape) == {"data": 4, "model": 2}
    here = fnn.sharding.mesh(data=4, model=2)
    plans = [fnn.sharding.plan(mesh, net, tx, (8, 64), fsdp="data") for mesh in (there, here)]
    assert str(plans[0]) == str(plans[1])
    with pytest.raises(fnn.errors.OptionError, match="product is 8"):
        fnn.sharding.mesh(on="v5e:2x4", data=3)


# --- what needs no compiler


def a_step(net, tx=None, **options):
    tx = tx or fnn.optim.adam(1e-3)
    return fnn.train.step(fnn.train.supervised(net, fnn.losses.squared_error), tx, **options)


def state_of(net, x):
    return fnn.train.shapes(net, fnn.optim.adam(1e-3), x)


def test_a_state_too_large_for_a_device_is_refused_without_compiling():
    net, x = fnn.dense(40_000, use_bias=False), jax.ShapeDtypeStruct((8, 40_000), jnp.float32)
    report = fnn.dryrun(a_step(net), state_of(net, x), (x, x), on="v5e:1x1")
    params = 40_000**2 * 4
    assert (report.params, report.optimizer) == (params, 2 * params + 4)
    assert report.batch == 2 * 8 * 40_000 * 4 and not report.fits and report.estimate() is None
    text = str(report)
    assert text.startswith("does not fit on 1 x v5e: 15.8 GiB a device (its arguments alone")
    assert "at least 2 devices" in text


def test_a_compiler_that_is_missing_is_named_with_its_extra(monkeypatch):
    net, x = fnn.dense(3), jax.ShapeDtypeStruct((2, 3), jnp.float32)
    monkeypatch.setattr(dry_run, "_PACKAGES", {"tpu": ("no_such_package",)})
    for python in (None, sys.executable):
        with pytest.raises(ImportError, match=r"no_such_package: pip install 'fnn\[dryrun\]'"):
            fnn.dryrun(a_step(net), state_of(net, x), (x, x), on="v5e:1x1", python=python)


def test_another_number_of_devices_than_those_of_the_plan_is_refused():
    net, x = fnn.dense(3), jax.ShapeDtypeStruct((8, 3), jnp.float32)
    mesh = fnn.sharding.mesh(on="v5e:2x4", data=8)
    placed = fnn.sharding.plan(mesh, net, fnn.optim.adam(1e-3), x)
    for shardings, on in ((None, "v5e:2x4"), (placed, "v5e:4x4"), (placed, "v5e:1x1")):
        with pytest.raises(fnn.errors.OptionError, match="shardings over"):
            fnn.dryrun(a_step(net), placed.shapes, (x, x), on=on, shardings=shardings)


def test_nothing_is_trained_on_devices_that_are_not_here():
    net, tx, x = fnn.dense(3), fnn.optim.adam(1e-3), np.ones((8, 3), np.float32)
    placed = fnn.sharding.plan(fnn.sharding.mesh(on="v5e:2x4", data=8), net, tx, x)
    ts = fnn.train.init(net, tx, jax.random.key(0), x)
    for run in (
        lambda: fnn.train.init(net, tx, jax.random.key(0), x, shardings=placed),
        lambda: a_step(net, tx, shardings=placed)(ts, (x, x)),
        lambda: placed.everywhere(x),
    ):
        with pytest.raises(fnn.errors.InputError, match="for fnn.dryrun; plan on"):
            run()


def test_what_the_compiler_says_of_too_large_a_program_is_read():
    place = machines.topology("v5e:1x1")
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm."
    more = (
        "RESOURCE_EXHAUSTED: required for HLO temporaries (4.25T) exceeds available HBM (15.25G)."
    )
    assert dry_run._refused(used, place)["peak"] == 18.5 * 2**30
    assert dry_run._refused(more, place)["peak"] == 4.25 * 2**40
    assert dry_run._refused("RESOURCE_EXHAUSTED: else", place)["peak"] is None
    with pytest.raises(RuntimeError, match="INTERNAL"):
        dry_run._refused("INTERNAL: a bug", place)


# --- the report


def a_report(on="h100:16", **fields):
    memory = Memory(6 * 2**30, 6 * 2**30, 5 * 2**30, 60 * 2**30, 0)
    given = dict(
        topology=machines.topology(on), mesh={"data": 16}, whole=16 * 2**30, params=2 * 2**30,
        optimizer=4 * 2**30, state=12, batch=2**20, memory=memory, peak=memory.peak,
        flops=10**15, seconds=12.0, largest=(Array("f32[2,8]", "blocks/up", True, 64),),
        collectives=by_layer(parse(TEXT), 16, lambda name: ("up", True), lambda groups: 1e9),
    )  # fmt: skip
    return Report(**(given | fields))


def test_a_report_adds_up_and_prints_its_parts():
    report = a_report()
    assert report.fits and report.peak == 67 * 2**30
    found = report.estimate()
    assert found.compute == 10**15 / 989e12 and found.memory == 12 * 2**30 / 3352e9
    assert found.links == sum(each.seconds for each in report.collectives)
    assert found.least == max(found) and found.most == sum(found)
    assert report.estimate(flops=1e15, link=1.0)[::2] == (1.0, report.sent)
    text = str(report)
    for part in (
        "fits on 16 x h100 (data=16): 67 GiB of 79.1 GiB",
        "not measured",
        "up (backward)",
    ):
        assert part in text


def test_advice_has_figures():
    report = a_report()
    assert any(
        "params and optimizer would take 1 GiB of each, 5 GiB less" in a for a in report.advice
    )
    assert any(a.startswith("fnn.remat") and "60 GiB" in a for a in report.advice)
    assert any("MEM_FRACTION" in a for a in report.advice)
    half = a_report(memory=report.memory._replace(temporaries=31 * 2**30))
    assert any("31 GiB, 29 GiB less (compiled)" in a for a in report.advised(half).advice)
    assert not any("remat" in a for a in a_report(recomputes=True).advice)
    kept = report.memory._replace(aliased=0)
    assert any("donate" in a for a in a_report(memory=kept).advice)


def test_two_placements_stand_side_by_side():
    refused = a_report(memory=None, peak=None, refusal="its arguments alone do not fit")
    lines = a_report().compare(refused, ("sharded", "whole")).splitlines()
    assert lines[0].split() == ["sharded", "whole"]
    assert next(line for line in lines if line.startswith("fits")).split() == ["fits", "yes", "no"]
    assert next(line for line in lines if line.startswith("peak")).split() == ["peak", "67", "GiB"]


def test_hosts_are_slower_than_links():
    """A ring over two whole hosts uses the networks of all their GPUs, one over single GPUs not."""
    speeds = []
    for text in ("[1,16]<=[16]", "[2,8]<=[16]", "[8,2]<=[2,8]T(1,0)"):
        program = TEXT.replace("{{0,1},{2,3}}", text)
        found = dry_run._read(program, [], machines.topology("h100:16"))["collectives"]
        row = next(each for each in found if each.op == "all-reduce")
        speeds.append(row.sent / row.seconds)
    np.testing.assert_allclose(speeds, [400e9, 450e9, 50e9])
