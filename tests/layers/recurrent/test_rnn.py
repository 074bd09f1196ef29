"""Layers over sequences, against float64 loops: masks, lengths, resets, directions, state."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from tests.layers.recurrent import oracles
from tests.layers.recurrent.test_cells import (
    ROW,
    C,
    H,
    at,
    cast,
    close,
    drawn,
    key,
    normal,
    same,
    spread,
    wide,
)

N = np.zeros(4)
LEADS = [(), (1,), (3,), (2, 3), (0,)]
KINDS = {  # name: layer over a sequence, oracle, the carry of one example as zeros
    "lstm": (fnn.lstm, oracles.lstm_cell, (ROW, ROW)),
    "gru": (fnn.gru, oracles.gru_cell, ROW),
    "simple_rnn": (fnn.simple_rnn, oracles.rnn_cell, ROW),
    "lru": (lambda features, **options: fnn.lru(features, 4, **options), oracles.lru_cell, (N, N)),
}


class Case(NamedTuple):
    x: np.ndarray
    mask: np.ndarray | None  # bool [..., T]
    carry: tuple | np.ndarray | None
    resets: np.ndarray | None
    steps: np.ndarray  # which are real, as bool [..., T]
    lengths: np.ndarray | None = None  # [...]


@st.composite
def cases(draw, zero=ROW):
    lead, steps = draw(st.sampled_from(LEADS)), draw(st.sampled_from([0, 1, 2, 5]))
    masked = draw(st.sampled_from(["no", "mask", "lengths", "mask and lengths"]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = random.normal(size=(*lead, steps, C))
    mask, lengths, full = None, None, np.ones((*lead, steps), bool)
    if "mask" in masked:
        mask = full = random.random((*lead, steps)) < 0.6
    if "lengths" in masked:
        lengths = np.asarray(random.integers(0, steps + 1, lead))
        full = full & (np.arange(steps) < lengths[..., None])
    carry = drawn(zero, lead, seed=int(random.integers(99))) if draw(st.booleans()) else None
    resets = random.random((*lead, steps)) < 0.4 if draw(st.booleans()) else None
    return Case(x, mask, carry, resets, full, lengths)


def loops(step, p, case, zero, reverse=False):
    """(y, the last y, the carry) of each example."""

    def one(i):
        resets = None if case.resets is None else case.resets[i]
        carry = None if case.carry is None else at(case.carry, i)
        options = dict(mask=case.steps[i], carry=carry, resets=resets, reverse=reverse)
        return oracles.unroll(step, p, case.x[i], zero, shape=(H,), **options)

    return oracles.each(case.x.shape[:-2], one)


def on_device(case, dtype):
    mask, resets, lengths = jax.tree.map(jnp.asarray, (case.mask, case.resets, case.lengths))
    return jnp.asarray(case.x, dtype), mask, cast(case.carry, dtype), resets, lengths


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


# --- both ways -----------------------------------------------------------------------------

MERGES = {
    "concat": lambda f, b: np.concatenate([f, b], -1),
    "sum": np.add,
    "mean": lambda f, b: (f + b) / 2,
    "mul": np.multiply,
    "custom": lambda f, b: f - 2 * b,
}


def assert_both_loops(case, merge, sequence=True):
    net = fnn.bidirectional(
        fnn.cells.gru(H), fnn.cells.mgu(H), MERGES[merge] if merge == "custom" else merge,
        return_carry=True, return_sequence=sequence,
    )  # fmt: skip
    p = spread(net.init(key(), (5, C))[0])
    assert sorted(p) == ["backward", "forward"]
    x, mask, carry, *rest = on_device(case, "float32")
    if carry is not None:
        carry = {"forward": carry, "backward": 2 * carry}
    y, end = jax.jit(net)(cast(p, "float32"), x, mask, carry, *rest)
    features = 2 * H if merge == "concat" else H
    assert y.shape == (*case.x.shape[: -1 if sequence else -2], features)
    if 0 in case.x.shape[:-2]:
        return
    double = case if case.carry is None else case._replace(carry=2 * case.carry)
    f = loops(oracles.gru_cell, p["forward"], case, ROW)
    b = loops(oracles.mgu_cell, p["backward"], double, ROW, reverse=True)
    wanted = MERGES[merge](f[not sequence], b[not sequence])
    close((y, end), (wanted, {"forward": f[2], "backward": b[2]}))


@given(case=cases(), sequence=st.booleans())
def test_bidirectional_is_the_two_loops(case, sequence):
    assert_both_loops(case, "concat", sequence)


@pytest.mark.parametrize("merge", MERGES)
def test_directions_are_merged(merge):
    full = np.ones((2, 3), bool)
    assert_both_loops(Case(normal(2, 3, C), None, None, None, full), merge)


PADDED = {both: fnn.gru(H, layers=2, bidirectional=both, return_carry=True) for both in (0, 1)}
RUN_PADDED = {both: jax.jit(net) for both, net in PADDED.items()}


@given(both=st.sampled_from([0, 1]), lengths=st.tuples(*[st.sampled_from([0, 1, 3, 5])] * 3))
def test_padded_sequences_are_the_sequences_alone(both, lengths):
    """Lengths, and what is right of them, give what each sequence gives by itself."""
    params = cast(spread(PADDED[both].init(key(), (5, C))[0]), "float32")
    x, run = normal(3, 5, C, seed=sum(lengths)), RUN_PADDED[both]
    y, carry = run(params, x, None, None, None, jnp.array(lengths))
    for i, n in enumerate(lengths):
        close((y[i, :n], at(carry, i)), run(params, x[i, :n]))
        assert not y[i, n:].any()


def test_resets_are_the_episodes_alone():
    """An episode's outputs depend on nothing outside of it, in both directions."""
    net = fnn.bidirectional(fnn.cells.lstm(H), fnn.cells.gru(H))
    params = cast(spread(net.init(key(), (5, C))[0]), "float32")
    x = normal(7, C)
    resets = np.array([0, 0, 1, 0, 0, 1, 0], bool)
    whole = net(params, x, None, None, resets)
    alone = [net(params, x[a:b]) for a, b in ((0, 2), (2, 5), (5, 7))]
    close(whole, np.concatenate(alone))


@pytest.mark.parametrize("kind", ["gru", "lru"])
def test_padding_crosses_no_boundary(kind):
    """In reverse, what is left of the first real step does not see the boundary before that."""
    net = KINDS[kind][0](H, reverse=True, return_carry=True)
    params = cast(spread(net.init(key(), (5, C))[0]), "float32")
    x, resets = normal(3, C), np.array([False, True, False])
    padded = net(params, x, np.array([False, True, True]), None, resets)
    alone = net(params, x[1:], None, None, resets[1:])
    close((padded[0][1:], padded[1]), alone)


@pytest.mark.parametrize("reverse", [False, True])
def test_resets_bring_back_a_learned_carry(reverse):
    net = fnn.gru(H, learned_carry=True, reverse=reverse, return_carry=True)
    p = spread(net.init(key(), (5, C))[0])
    x, resets = normal(2, 5, C), np.array([[0, 0, 1, 0, 1], [1, 0, 0, 1, 0]], bool)
    case = Case(np.float64(x), None, np.ones((2, H)), resets, np.ones((2, 5), bool))
    out = jax.jit(net)(cast(p, "float32"), x, None, jnp.ones((2, H)), resets)
    wanted, _, carry = loops(oracles.gru_cell, p, case, p["first_h"], reverse)
    close(out, (wanted, carry))


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


def test_the_layers_of_a_deep_one_follow_each_other():
    deep = fnn.lstm(H, layers=3, return_carry=True)
    x = normal(2, 4, C)
    params = cast(spread(deep.init(key(), x)[0]), "float32")
    assert sorted(params) == ["lstm1", "lstm2", "lstm3"]
    deep = jax.jit(deep)
    y, carry = deep(params, x)
    h, single = x, jax.jit(fnn.lstm(H, return_carry=True))
    for name in params:
        h, own = single(params[name], h)
        close(carry[name], own)
    close(y, h)
    short = fnn.lstm(H, layers=3, return_sequence=False)
    close(short(params, x), y[:, -1])
    begin = jax.tree.map(lambda a: a + 1, carry)
    _, h = deep(params, x, None, begin)[0], x
    for name in params:
        h, _ = single(params[name], h, None, begin[name])
    close(deep(params, x, None, begin)[0], h)


def test_dropout_between_layers_is_after_all_but_the_last():
    net = fnn.gru(H, layers=2, dropout=1.0)
    x = normal(2, 4, C)
    params = cast(spread(net.init(key(), x)[0]), "float32")
    y, _ = net.apply(params, {}, x, key=key(), train=True)
    close(y, fnn.gru(H)(params["gru2"], jnp.zeros((2, 4, H))))
    close(net(params, x), fnn.gru(H, layers=2)(params, x))
    one = fnn.gru(H, dropout=1.0)
    y, _ = one.apply(params["gru1"], {}, x, key=key(), train=True)
    close(y, fnn.gru(H)(params["gru1"], x))


# --- padding -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, reverse",
    [("lstm", False), ("gru", True), ("simple_rnn", False), ("lru", False), ("lru", True)],
)
def test_padding_changes_neither_outputs_nor_gradients(kind, reverse):
    build, _, _ = KINDS[kind]
    x, w = normal(3, 5, C), normal(3, 5, H, seed=2)
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]], bool)
    net = build(H, reverse=reverse, return_carry=True)
    params = cast(spread(net.init(key(), x)[0]), "float32")

    @jax.jit
    def run(params, x):
        def loss(params, x):
            y, carry = net(params, x, mask)
            leaves = [jnp.sum(a**2) for a in jax.tree.leaves(carry)]
            return jnp.sum(w * y) + sum(leaves), (y, carry)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    clean = run(params, np.where(mask[..., None], x, 0))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(clean))
    assert not np.any(clean[0][1][0][~mask]) and not np.any(clean[1][1][~mask])
    for rubbish in (np.nan, np.inf, -np.inf, 1e30):
        same(run(params, np.where(mask[..., None], x, np.float32(rubbish))), clean)
    short = jax.jit(
        jax.grad(
            lambda params, x, w: (
                jnp.sum(w * net(params, x)[0])
                + sum(jnp.sum(a**2) for a in jax.tree.leaves(net(params, x)[1]))
            ),
            (0, 1),
        )
    )
    parts = [short(params, x[i, mask[i]], w[i, mask[i]]) for i in range(2)]
    close(clean[1][0], jax.tree.map(lambda a, b: np.float64(a + b), parts[0][0], parts[1][0]))
    for i in range(2):
        close(clean[1][1][i, mask[i]], parts[i][1])


def test_resets_where_the_mask_is_false_are_ignored():
    net = fnn.gru(H, return_carry=True)
    params = cast(spread(net.init(key(), (5, C))[0]), "float32")
    x, mask = normal(4, C), np.array([True, False, True, True])
    hidden = np.array([False, True, False, False])
    same(net(params, x, mask, None, hidden), net(params, x, mask))


@pytest.mark.parametrize("kind", ["gru", "lru"])
def test_vmap_over_examples_and_params_is_the_batch(kind):
    x, mask, resets = normal(3, 5, C), *(np.random.default_rng(0).random((2, 3, 5)) < 0.6)
    net = KINDS[kind][0](H)
    params = cast(spread(net.init(key(), x)[0]), "float32")
    rows = jax.jit(jax.vmap(lambda x, m, r: net(params, x, m, None, r)))(x, mask, resets)
    whole = jax.jit(net)(params, x, mask, None, resets)
    close(rows, whole)
    two = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
    many = jax.jit(jax.vmap(net, (0, None, None, None, None)))(two, x, mask, None, resets)
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
            return jnp.sum(net(unflat(v), jnp.asarray(x)) ** 2)

        v = jnp.asarray(flat)
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


# --- how the loop is run -----------------------------------------------------------------------


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


def test_a_stateful_layer_starts_where_the_last_call_ended():
    plain = fnn.lstm(H, return_carry=True)
    net = fnn.lstm(H, stateful=True)
    x = normal(2, 6, C)
    params, state = net.init(key(), x)
    for train in (False, True):
        run = jax.jit(partial(net.apply, key=key(), train=train))
        y1, after = run(params, state, x[:, :3])
        y2, last = run(params, after, x[:, 3:])
        close(jnp.concatenate([y1, y2], 1), plain(params, x)[0])
        again, _ = run(params, fnn.forget(last), x[:, :3])
        close(again, y1)

    def loss(params, first):
        _, state1 = net.apply(params, state, first)
        y, _ = net.apply(params, state1, x[:, 3:])
        return jnp.sum(y**2)

    np.testing.assert_array_equal(jax.grad(loss, 1)(params, x[:, :3]), 0)
    y, carry = plain(params, x[:, :3])
    alone = jax.grad(lambda p: jnp.sum(plain(p, x[:, 3:], None, carry)[0] ** 2))(params)
    close(jax.grad(loss)(params, x[:, :3]), alone)


def test_forget_reaches_every_layer_and_a_learned_carry_comes_back():
    cell = fnn.cells.gru(H, learned_carry=True)
    net = fnn.serial(fnn.rnn(cell, stateful=True), fnn.batch_norm(), fnn.gru(2, stateful=True))
    x = normal(2, 3, C)
    params, state = net.init(key(), x)
    params["rnn1"]["first_h"] = jnp.array([0.5, -0.5, 0.1])
    run = jax.jit(net.apply)
    y, after = run(params, state, x)
    moved, _ = run(params, after, x)
    assert abs(moved - y).max() > 1e-3
    fresh = fnn.forget(after)
    close(run(params, fresh, x)[0], y)
    assert jax.tree.structure(fresh) == jax.tree.structure(after)
    same(fresh["batch_norm1"], after["batch_norm1"])
    grads = jax.jit(jax.grad(lambda p, s: jnp.sum(net.apply(p, s, x)[0] ** 2)))
    assert np.any(grads(params, state)["rnn1"]["first_h"])
    assert not np.any(grads(params, after)["rnn1"]["first_h"])


def test_state_that_is_given_a_carry_takes_it():
    net = fnn.gru(H, stateful=True)
    x, begin = normal(2, 3, C), normal(2, H)
    params, state = net.init(key(), x)
    _, after = net.apply(params, state, x)
    y, _ = net.apply(params, after, x, None, begin)
    close(y, fnn.gru(H)(params, x, None, begin))


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
