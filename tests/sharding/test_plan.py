"""Where arrays go, by hand-written tables; and what a plan refuses."""

import math

import jax
import pytest
from jax.sharding import AxisType

import fnn
from fnn.sharding import MEGATRON
from tests.optim.table import ROWS

pytestmark = pytest.mark.cpu
SGD = fnn.optim.sgd(0.1)
BLOCK = fnn.transformer_block(16, 4)
X = (8, 5, 16)


def specs(placed):
    return {row.path: tuple(row.spec) for row in placed.rows()}


def test_a_mesh_takes_all_devices():
    mesh = fnn.sharding.mesh(data=2, model=-1)
    assert dict(mesh.shape) == {"data": 2, "model": 4}
    assert set(mesh.devices.flat) == set(jax.devices())
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert fnn.sharding.mesh(devices=jax.devices()[:2], data=2).size == 2


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"data": -1, "model": -1}, {"data": -1, "model": 3}]
)
def test_a_mesh_refuses_sizes_that_do_not_fit(sizes):
    with pytest.raises(fnn.FnnError, match="mesh: expected sizes whose product is 8"):
        fnn.sharding.mesh(**sizes)
    with pytest.raises(fnn.FnnError, match="at least one axis"):
        fnn.sharding.mesh()


def test_tensor_parallel_cuts_columns_into_a_block_and_rows_out_of_it():
    """Figure 3 of Shoeybi et al. 2019."""
    placed = fnn.sharding.plan(fnn.sharding.mesh(data=2, model=4), BLOCK, SGD, X, rules=MEGATRON)
    found = specs(placed)
    columns, rows, cut = (None, "model"), ("model", None), ("model",)
    wanted = {f"attention/{name}": (columns, cut) for name in "qkv"}
    wanted |= {"attention/out": (rows, None), "up": (columns, cut), "down": (rows, None)}
    seen = set()
    for path, (kernel, bias) in wanted.items():
        for leaf, spec in (("kernel", kernel), ("bias", bias)):
            (whole,) = (p for p in found if p.startswith("params") and p.endswith(f"{path}/{leaf}"))
            seen.add(whole)
            assert tuple(found[whole]) == (spec or (None,)), whole
    for path in found.keys() - seen:
        assert not any(found[path]), path  # norms, the step and the key
    assert placed.batch == ("data",)


def test_stacked_layers_are_cut_within_each_layer():
    net = fnn.repeat(BLOCK, 8)
    placed = fnn.sharding.plan(fnn.sharding.mesh(data=8), net, SGD, X, fsdp="data")
    shapes = {row.path: row.shape for row in placed.rows()}
    for path, spec in specs(placed).items():
        if path.endswith("up/kernel"):
            assert shapes[path] == (8, 16, 64) and spec == (None, "data", None)
        assert not spec or spec[0] is None or not path.startswith("params")


def test_full_sharding_cuts_the_longest_axis_of_inputs_that_divides():
    net = fnn.serial(fnn.dense(24), fnn.dense(17), fnn.dense(400))
    mesh = fnn.sharding.mesh(data=8)
    found = specs(fnn.sharding.plan(mesh, net, SGD, (8, 64), fsdp="data", least=100))
    assert found["params/dense1/kernel"] == ("data", None)  # (64, 24)
    assert found["params/dense2/kernel"] == ("data", None)  # (24, 17)
    assert found["params/dense3/kernel"] == (None, "data")  # (17, 400)
    assert found["params/dense3/bias"] == ("data",)
    assert not any(found["params/dense1/bias"]) and not any(found["params/dense2/bias"])
    net = fnn.serial(fnn.dense(64), fnn.conv(32, (3, 3)))
    found = specs(fnn.sharding.plan(mesh, net, SGD, (8, 5, 5, 16), fsdp="data", least=100))
    assert found["params/dense1/kernel"] == ("data", None)  # (16, 64)
    assert found["params/conv1/kernel"] == (None, None, "data", None)  # (3, 3, 64, 32)


def test_both_together_cut_two_axes():
    mesh = fnn.sharding.mesh(data=2, model=4)
    placed = fnn.sharding.plan(mesh, BLOCK, SGD, X, fsdp="data", rules=MEGATRON, least=1)
    found = specs(placed)
    assert found["params/up/kernel"] == ("data", "model")
    assert found["params/down/kernel"] == (("model", "data"), None)


def test_the_first_rule_that_matches_counts():
    mesh = fnn.sharding.mesh(data=2, model=4)
    rules = [("*up*", {}), ("*down*", {"hidden": ("data", "model")}), *MEGATRON]
    found = specs(fnn.sharding.plan(mesh, BLOCK, SGD, X, rules=rules))
    assert not any(found["params/up/kernel"])
    assert found["params/down/kernel"] == (("data", "model"), None)
    assert found["params/attention/q/kernel"] == (None, "model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": [("*nothing*", {"heads": "model"})]}, "matches none.*heads"),
        ({"rules": [("*", {"height": "model"})]}, "matches none"),
        ({"rules": [("*", {"heads": "rows"})]}, "rows"),
        ({"fsdp": "rows"}, "fsdp"),
        ({"batch": "rows"}, "batch"),
        ({"rules": [("*", {"in": "model", "hidden": "model"})]}, "up/kernel: each axis"),
    ],
)
def test_what_a_plan_refuses(options, message):
    mesh = fnn.sharding.mesh(data=2, model=4)
    with pytest.raises(fnn.errors.OptionError, match=message):
        fnn.sharding.plan(mesh, BLOCK, SGD, X, **options)


def test_an_axis_that_does_not_divide_is_named_by_path():
    mesh = fnn.sharding.mesh(data=1, model=8)
    block = fnn.transformer_block(16, 8, hidden=20)
    with pytest.raises(fnn.errors.ShapeError, match="down/kernel: an axis 'hidden' that model = 8"):
        fnn.sharding.plan(mesh, block, SGD, X, rules=MEGATRON)


def test_heads_are_cut_whole():
    """8 values are 2 heads of 4, which 4 devices do not divide; the devices that have all of them
    share q's alone."""
    mesh = fnn.sharding.mesh(data=2, model=4)
    block = fnn.transformer_block(16, 4, kv_heads=2)
    wanted = (
        r"an axis 'kv_heads' that model = 4 .* 2 parts; .*\('attention/k/\*', {'kv_heads': \(\)}"
    )
    with pytest.raises(fnn.errors.ShapeError, match=wanted):
        fnn.sharding.plan(mesh, block, SGD, X, rules=MEGATRON)
    rules = [("*attention/[kv]/*", {"kv_heads": ()}), *MEGATRON]
    found = specs(fnn.sharding.plan(mesh, block, SGD, X, rules=rules, fsdp="data", least=100))
    assert found["params/attention/k/kernel"] == ("data", None)
    assert found["params/attention/q/kernel"] == ("data", "model")


def test_an_explicit_mesh_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(fnn.errors.OptionError, match="automatic axes"):
        fnn.sharding.plan(mesh, BLOCK, SGD, X)


@pytest.mark.parametrize("name", ROWS)
def test_bytes_a_device_are_an_eighth(name):
    net, mesh = fnn.serial(fnn.dense(256), fnn.dense(128)), fnn.sharding.mesh(data=8)
    tx = ROWS[name].build(**ROWS[name].usual)
    placed = fnn.sharding.plan(mesh, net, tx, (8, 512), fsdp="data")
    local = sum(row.bytes for row in placed.rows())
    whole = sum(math.prod(row.shape) * row.dtype.itemsize for row in placed.rows())
    assert local < 1.1 * whole / 8


@pytest.mark.parametrize("name", ["adafactor", "shampoo", "muon", "sm3"])
def test_bytes_a_device_of_stacks_are_an_eighth(name):
    net = fnn.serial(fnn.dense(256), fnn.repeat(fnn.dense(256), 2))
    tx = fnn.optim.stacked(ROWS[name].build(**ROWS[name].usual), net.specs((8, 512))[0])
    placed = fnn.sharding.plan(fnn.sharding.mesh(data=8), net, tx, (8, 512), fsdp="data")
    local = sum(row.bytes for row in placed.rows())
    whole = sum(math.prod(row.shape) * row.dtype.itemsize for row in placed.rows())
    assert local < 1.1 * whole / 8


def test_optimizer_state_lies_where_its_param_does():
    mesh = fnn.sharding.mesh(data=2, model=4)
    tx = fnn.optim.adam(1e-3)
    found = specs(fnn.sharding.plan(mesh, BLOCK, tx, X, rules=MEGATRON, fsdp="data", least=1))
    params = {path.removeprefix("params/"): spec for path, spec in found.items()
              if path.startswith("params/")}  # fmt: skip
    moments = [p for p in found if p.startswith("opt_state") and p.split("/mu/")[0] != p]
    assert len(moments) == len(params)
    for path in moments:
        assert found[path] == params[path.split("/mu/")[1]]


@pytest.mark.parametrize("freeze", [fnn.frozen, lambda net: fnn.lora(net, 4)])
def test_what_is_frozen_lies_where_its_param_would(freeze):
    net = fnn.serial(fnn.dense(256), fnn.batch_norm(), fnn.dense(128))
    mesh, tx = fnn.sharding.mesh(data=8), fnn.optim.adam(1e-3)
    placed = fnn.sharding.plan(mesh, freeze(net), tx, (8, 512), fsdp="data")
    found = specs(placed)
    (kernel,) = (path for path in found if path.startswith("state") and "dense1/kernel" in path)
    (mean,) = (path for path in found if path.endswith("mean"))
    assert found[kernel] == ("data", None) and not any(found[mean])


def test_the_table_shows_every_array_and_the_totals():
    mesh = fnn.sharding.mesh(data=8)
    placed = fnn.sharding.plan(mesh, fnn.dense(64), SGD, (8, 32), fsdp="data")
    lines = str(placed).splitlines()
    assert lines[0] == "mesh data=8; a batch over data"
    (row,) = (line for line in lines if line.startswith("params/kernel"))
    assert row.split()[-1] == f"{64 * 32 * 4 // 8:,}"
    assert f"params: {64 * 32 * 4 // 8 + 64 * 4:,} bytes a device, of {64 * 33 * 4:,}" in lines
