"""Layers over sequences against float64 loops: directions, chunks, carries and derivatives."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.recurrent import oracles
from tests.layers.recurrent.support import (
    KINDS,
    C,
    H,
    at,
    cases,
    cast,
    close,
    key,
    loops,
    normal,
    on_device,
    same,
    spread,
    wide,
)
from tests.support import asarray


@pytest.mark.parametrize("kinds", [["lstm", "gru", "simple_rnn"], ["lru"]], ids=["rnn", "lru"])
@given(data=st.data(), reverse=st.booleans(), dtype=st.sampled_from(["float32", "float64"]))
def test_a_layer_over_a_sequence_is_the_loop(kinds, data, reverse, dtype):
    build, step, zero = KINDS[data.draw(st.sampled_from(kinds))]
    case = data.draw(cases(zero))
    net = build(H, reverse=reverse, return_carry=True)
    short = build(H, reverse=reverse, return_sequence=False)
    p = spread(net.init(key(), (5, C))[0])
    with wide(dtype):
        params, xs = cast(p, dtype), on_device(case, dtype)
        (y, carry), last = jax.jit(lambda p, *xs: (net(p, *xs), short(p, *xs)))(params, *xs)
    assert y.shape == (*case.x.shape[:-1], H) and last.shape == (*case.x.shape[:-2], H)
    assert y.dtype == last.dtype == dtype
    if 0 not in y.shape[:-2]:
        close((y, last, carry), loops(step, p, case, zero, reverse), dtype)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_run_in_chunks_is_the_whole_run(reverse):
    """In reverse the later chunk comes first, and a boundary on the cut is the caller's."""
    resets, x = np.array([0, 0, 0, not reverse, 0, 1], bool), normal(6, C)
    net = fnn.gru(H, reverse=reverse, return_carry=True)
    params, run = cast(spread(net.init(key(), (5, C))[0]), "float32"), jax.jit(net)
    whole, end = run(params, x, None, None, resets)
    cuts = [slice(3, 6), slice(0, 3)] if reverse else [slice(0, 3), slice(3, 6)]
    ys, carry = {}, None
    for cut in cuts:
        ys[cut.start], carry = run(params, x[cut], None, carry, resets[cut])
    close((np.concatenate([ys[0], ys[3]]), carry), (whole, end))


@pytest.mark.parametrize("kind", ["gru", "lru"])
def test_vmap_over_examples_and_params_is_the_batch(kind):
    x, mask, resets = normal(3, 5, C), *(np.random.default_rng(0).random((2, 3, 5)) < 0.6)
    net = KINDS[kind][0](H)
    params = cast(spread(net.init(key(), x)[0]), "float32")
    two = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)

    @jax.jit
    def all_of_it(x, mask, resets):
        rows = jax.vmap(lambda x, m, r: net(params, x, m, None, r))(x, mask, resets)
        many = jax.vmap(net, (0, None, None, None, None))(two, x, mask, None, resets)
        return rows, many, net(params, x, mask, None, resets)

    rows, many, whole = all_of_it(x, mask, resets)
    close(rows, whole)
    close(many[0], whole)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_over_two_thousand_steps(kind):
    net = KINDS[kind][0](H, return_sequence=False)
    x = normal(2, 2000, C)
    params, _ = net.init(key(), x)
    loss = jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(net(p, x) ** 2), (0, 1)))
    for scale in (1, 100):
        out = loss(params, scale * x)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(out))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_forward_over_reverse_and_the_hessian_of_a_tiny_one(kind):
    build, step, zero = KINDS[kind]
    net, zero = build(1), jax.tree.map(lambda a: a[:1], zero)
    p = spread(net.init(key(), (2, 1))[0])
    x = normal(2, 1).astype(np.float64)
    flat = np.concatenate([p[name].ravel() for name in sorted(p)])

    def unflat(v):
        out, i = {}, 0
        for name in sorted(p):
            out[name] = v[i : i + p[name].size].reshape(p[name].shape)
            i += p[name].size
        return out

    def wanted(v):
        y, *_ = oracles.unroll(step, unflat(v), x, zero, shape=(1,))
        return np.sum(y**2)

    with jax.enable_x64(True):

        def loss(v):
            return jnp.sum(net(unflat(v), asarray(x)) ** 2)

        v = asarray(flat)
        hessian, forward, reverse = jax.jit(
            lambda v: (jax.hessian(loss)(v), jax.jacfwd(loss)(v), jax.jacrev(loss)(v))
        )(v)
    np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-12)
    eye = np.eye(len(flat))
    for i in range(len(flat)):
        for j in range(i + 1):
            second = oracles.slope(lambda v, i=i: oracles.slope(wanted, v, eye[i]), flat, eye[j])
            np.testing.assert_allclose(hessian[i, j], second, atol=1e-7)
            np.testing.assert_allclose(hessian[j, i], second, atol=1e-7)


def both_ways(net, params, x, *rest):
    """Outputs and gradients of a sum of squares."""

    def loss(params, x):
        y, carry = net(params, x, *rest)
        leaves = jax.tree.leaves((y, carry))
        return sum(jnp.sum(a**2) for a in leaves), (y, carry)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)


def random_case():
    x, masks = normal(2, 7, C), np.random.default_rng(1).random((2, 2, 7)) < 0.7
    return x, masks[0], None, masks[1]


@cache
def plain_lstm(reverse):
    plain = fnn.lstm(H, return_carry=True, reverse=reverse)
    params = cast(spread(plain.init(key(), (7, C))[0]), "float32")
    return params, jax.tree.map(np.float64, both_ways(plain, params, *random_case()))


@pytest.mark.parametrize(
    "options",
    [
        {"unroll": 4}, {"checkpoint_every": 2}, {"checkpoint_every": 7}, {"checkpoint_every": 20},
        {"checkpoint_every": 3, "unroll": 2, "reverse": True},
    ],
    ids=str,
)  # fmt: skip
def test_how_steps_are_grouped_changes_no_value(options):
    params, wanted = plain_lstm(options.get("reverse", False))
    net = fnn.lstm(H, return_carry=True, **options)
    close(both_ways(net, params, *random_case()), wanted)


def test_grouped_steps_draw_the_same_noise():
    x, cell = (
        normal(2, 7, C),
        fnn.cells.serial(fnn.dropout(0.3), fnn.cells.zoneout(fnn.cells.gru(H), 0.5)),
    )
    params, _ = cell.init(key(), None, x[:, 0])

    def run(**options):
        apply = jax.jit(partial(fnn.rnn(cell, **options).apply, train=True))
        return apply(params, {}, x, key=key(1))[0]

    y = run()
    for options in ({"unroll": 3}, {"checkpoint_every": 2}, {"truncate": 3}):
        close(run(**options), y)


@pytest.mark.parametrize("k, more", [(2, {"checkpoint_every": 2}), (3, {}), (4, {"unroll": 2})])
def test_truncated_gradients_are_those_of_chunks_with_a_stop_between(k, more):
    x = normal(2, 7, C)
    mask = np.random.default_rng(1).random((2, 7)) < 0.8
    chunk = fnn.gru(H, return_carry=True)
    params = cast(spread(chunk.init(key(), x)[0]), "float32")

    def chunks(params, x, mask):
        ys, carry = [], None
        for t in range(0, 7, k):
            carry = jax.lax.stop_gradient(carry)
            y, carry = chunk(params, x[:, t : t + k], mask[:, t : t + k], carry)
            ys.append(y)
        return jnp.concatenate(ys, 1), carry

    wanted = both_ways(chunks, params, x, mask)
    net = fnn.gru(H, return_carry=True, truncate=k, **more)
    close(both_ways(net, params, x, mask), jax.tree.map(np.float64, wanted))


@pytest.mark.parametrize("kind", ["lstm", "gru", "simple_rnn"])
def test_going_on_from_a_carry_is_the_whole_run_bitwise(kind):
    net = KINDS[kind][0](16, return_carry=True)
    x = normal(4, 8, C)
    params, _ = net.init(key(), x)
    run = jax.jit(net)
    whole, end = run(params, x)
    first, carry = run(params, x[:, :4])
    second, last = run(params, x[:, 4:], None, carry)
    np.testing.assert_array_equal(jnp.concatenate([first, second], 1), whole)
    same(last, end)


def test_state_of_a_cell_rides_in_the_scan():
    """A batch norm within a step moves its statistics T times."""
    net = fnn.rnn(fnn.cells.serial(bn=fnn.batch_norm(momentum=0.5), cell=fnn.cells.gru(H)))
    x = normal(20, 3, C)
    params, state = net.init(key(), x)
    _, after = net.apply(params, state, x, key=key(), train=True)
    mean = np.zeros(C)
    for t in range(3):
        mean = 0.5 * mean + 0.5 * x[:, t].mean(0)
    close(after["bn"]["mean"], mean)


def test_sequences_of_images_and_of_tokens():
    net = fnn.rnn(fnn.cells.conv_lstm(2, (3, 3)), feature_axes=3, return_carry=True)
    x = normal(2, 3, 4, 5, 1)
    p = spread(net.init(key(), x)[0])
    mask = np.array([[1, 0, 1], [1, 1, 0]], bool)
    y, end = jax.jit(net)(cast(p, "float32"), x, mask)
    zero = np.zeros((4, 5, 2))
    for i in range(2):
        wanted, _, carry = oracles.unroll(
            oracles.conv_lstm_cell, p, x[i], (zero, zero), shape=zero.shape, mask=mask[i]
        )
        close((y[i], at(end, i)), (wanted, carry))
    tokens = fnn.rnn(fnn.cells.serial(fnn.embedding(5, C), fnn.cells.gru(H)), feature_axes=0)
    ids = np.random.default_rng(0).integers(0, 5, (2, 3))
    params, _ = tokens.init(key(), ids)
    wanted = fnn.gru(H)(params["gru_cell1"], params["embedding1"]["embedding"][ids], mask)
    close(tokens(params, ids, mask), wanted)


def test_a_layer_takes_the_place_of_any_other():
    """In serial, under jit, grad, remat, repeat and ensemble."""
    x = normal(2, 4, H)
    net = fnn.serial(fnn.repeat(fnn.remat(fnn.residual(fnn.gru(H))), 2), fnn.lstm(2), fnn.dense(1))
    params, state = net.init(key(), x)
    assert params["repeat1"]["layer"]["kernel"].shape == (2, H, 3 * H)
    y = jax.jit(net)(params, x)
    h, plain = x, fnn.gru(H)
    for i in range(2):
        h = h + plain(at(params["repeat1"]["layer"], i), h)
    h = fnn.lstm(2)(params["lstm1"], h)
    close(y, h @ params["dense1"]["kernel"] + params["dense1"]["bias"])
    many = fnn.ensemble(fnn.gru(H), 3)
    params, _ = many.init(key(), x)
    y = many(params, x)
    for i in range(3):
        close(y[i], plain(at(params, i), x))
