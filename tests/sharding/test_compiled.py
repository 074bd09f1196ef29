"""Dry runs through the compilers themselves: `make test-aot`. Each takes seconds to a minute."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn.sharding import MEGATRON
from tests.contracts.layers import LAYERS, floats, inputs

COMPILERS = ("libtpu", "jax_cuda12_plugin", "flatbuffers")
pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, COMPILERS)), reason="needs fnn[dryrun]"
    ),
]
EIGHT, ONE = ("v5e:2x4", "h100:8"), ("v5e:1x1", "h100:1")
FEATURES, WINDOW, DEPTH, VOCABULARY = 512, 128, 3, 2048
TX = fnn.optim.adam(1e-3)
X = jax.ShapeDtypeStruct((16, WINDOW), jnp.int32)


def transformer():
    block = fnn.transformer_block(FEATURES, 4, causal=True)
    return fnn.serial(
        embed=fnn.embedding(VOCABULARY, FEATURES), blocks=fnn.repeat(fnn.remat(block), DEPTH),
        norm=fnn.layer_norm(), head=fnn.dense(VOCABULARY),
    )  # fmt: skip


def dry(on, sizes, **options):
    net, mesh = transformer(), fnn.sharding.mesh(on=on, **sizes)
    placed = fnn.sharding.plan(mesh, net, TX, X, **options)
    net = fnn.sharding.constrained(net, placed)
    loss_fn = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy)
    step = fnn.train.step(loss_fn, TX, shardings=placed)
    batch = {"image": X, "label": X}
    return placed, fnn.dryrun(step, placed.shapes, batch, on=on, shardings=placed)


def check_arguments(placed, report):
    """What the compiler takes is what the plan says: this is the claim of 5%."""
    planned = sum(row.bytes for row in placed.rows())
    assert report.params + report.optimizer + report.state == planned
    assert report.memory.arguments == pytest.approx(planned + report.batch, rel=0.05)
    assert report.memory.aliased > 0.95 * planned  # donated
    assert report.fits and 0 < report.memory.temporaries < report.peak


@pytest.mark.parametrize("on", EIGHT)
def test_fully_sharded_gathers_params_and_holds_an_eighth(on):
    placed, report = dry(on, {"data": 8}, fsdp="data", least=1)
    check_arguments(placed, report)
    assert report.params + report.optimizer < 1.1 / 8 * report.whole
    gathers = [row for row in report.collectives if row.op == "all-gather"]
    blocks = 12 * FEATURES**2 * 4  # of one block
    inside = sum(row.nbytes for row in gathers if row.path.startswith("blocks"))
    assert DEPTH * blocks / 2 < inside < 8 * DEPTH * blocks  # loops counted, and nothing twice


@pytest.mark.parametrize("on", EIGHT)
def test_data_parallel_sums_each_gradient_once(on):
    placed, report = dry(on, {"data": 8})
    check_arguments(placed, report)
    assert {row.op for row in report.collectives} == {"all-reduce"}
    assert sum(row.nbytes for row in report.collectives) == pytest.approx(report.params, rel=0.1)
    products = 6 * (12 * DEPTH * FEATURES**2 + FEATURES * VOCABULARY) * 16 * WINDOW // 8
    assert products < report.flops < 1.6 * products  # attention, and what remat computes again


def test_tensor_parallel_sums_twice_a_block():
    placed, report = dry("v5e:2x4", {"data": 2, "model": 4}, rules=MEGATRON)
    check_arguments(placed, report)
    forward = [row for row in report.collectives if not row.backward and "blocks" in row.path]
    out = [row for row in forward if row.path.endswith(("out", "down"))]
    assert sum(row.times for row in out) >= 2 * DEPTH and all(row.op == "all-reduce" for row in out)


@pytest.mark.parametrize("on", ONE)
def test_what_does_not_fit_is_refused_with_its_size(on):
    """Arguments that fit, and gradients beside them that do not."""
    n = 36_000 if on.startswith("v5e") else 80_000
    net, x = fnn.dense(n, use_bias=False), jax.ShapeDtypeStruct((128, n), jnp.float32)
    ts = fnn.train.shapes(net, TX, x)
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.squared_error), TX, grad_norm=True)
    report = fnn.dryrun(step, ts, (x, x), on=on)
    assert not report.fits and report.peak > 4 * n * n * 3 > 0.85 * report.topology.machine.memory
    assert str(report).startswith("does not fit")


def test_half_of_the_batch_is_compiled_for_advice():
    net, x = (
        fnn.serial(fnn.dense(512), jnp.tanh, fnn.dense(512)),
        jax.ShapeDtypeStruct((65536, 512), jnp.float32),
    )
    ts = fnn.train.shapes(net, TX, x)
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.squared_error), TX)
    report = fnn.dryrun(step, ts, (x, x), on="v5e:1x1", advise=True)
    assert report.halved.temporaries < 0.7 * report.memory.temporaries
    assert any("half of the batch" in each for each in report.advice)


@pytest.mark.parametrize("on", ONE)
def test_a_function_with_custom_calls_is_compiled(on):
    a = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    report = fnn.dryrun(lambda a, b: jnp.linalg.qr(a @ b), a, a, on=on, donate=False)
    assert report.fits and report.operations


@pytest.mark.parametrize("on", ONE)
def test_every_kind_of_layer_compiles(on):
    """One program of all of them, forward and backward in training mode."""
    xs = {name: inputs(row[1:]) for name, row in LAYERS.items()}
    held = {
        name: jax.eval_shape(lambda name=name, row=row: row[0].init(jax.random.key(0), *xs[name]))
        for name, row in LAYERS.items()
    }

    def total(params, name, state, key):
        y, _ = LAYERS[name][0].apply(params, state, *xs[name], key=key, train=True)
        return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in floats(y))

    def step(held, key):
        return {
            name: jax.grad(total)(params, name, state, jax.random.fold_in(key, i))
            for i, (name, (params, state)) in enumerate(held.items())
        }

    key = jax.eval_shape(lambda: jax.random.key(0))
    report = fnn.dryrun(step, held, key, on=on, donate=False)
    assert report.fits and report.operations["while"] > 5
