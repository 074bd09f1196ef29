"""Notes out of a network, inputs by name, wrapping by hand, params without a call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.analysis import summary
from tests.support import asarray

key = jax.random.key


def noting():
    @fnn.compose(dense=fnn.dense(4))
    def layer(f, x):
        y = jnp.tanh(f.dense(x))
        f.note("size", jnp.sum(y**2))
        return y

    return layer


def x_of(*shape, seed=1):
    return jax.random.normal(key(seed), shape)


def test_notes_by_path_summed_over_members_steps_and_calls():
    @fnn.compose(one=noting())
    def twice(f, x):
        return f.one(f.one(x))

    net = fnn.serial(a=noting(), deep=fnn.repeat(noting(), 3), twice=twice)
    params, state = net.init(key(0), (2, 4))
    x = x_of(2, 4)
    y, after = net.apply(params, state, x, train=True)
    np.testing.assert_array_equal(y, net(params, x))  # evaluation needs no notes
    h, sizes = np.asarray(x, np.float64), []

    def layer(p, h):
        y = np.tanh(h @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64))
        sizes.append((y**2).sum())
        return y

    h = layer(params["a"]["dense"], h)
    for i in range(3):
        h = layer(jax.tree.map(lambda a, i=i: a[i], params["deep"]["dense"]), h)
    for _ in range(2):
        h = layer(params["twice"]["one"]["dense"], h)
    found = fnn.notes(after)
    assert list(found) == ["a/size", "deep/size", "twice/one/size"]
    wanted = [sizes[0], sum(sizes[1:4]), sum(sizes[4:])]
    np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-5)
    assert list(fnn.notes(after, "twice/*")) == ["twice/one/size"]
    _, again = net.apply(params, after, x, train=True)  # nothing is carried from call to call
    np.testing.assert_allclose(list(fnn.notes(again).values()), wanted, rtol=1e-5)


def test_notes_of_an_ensemble_and_of_a_cell_along_time():
    net = fnn.ensemble(noting(), 3)
    params, state = net.init(key(0), (2, 4))
    _, after = net.apply(params, state, x_of(2, 4), train=True)
    wanted = 0.0
    for i in range(3):
        member, own = noting(), jax.tree.map(lambda a, i=i: a[i], params)
        _, alone = member.apply(own, member.init(key(0), (2, 4))[1], x_of(2, 4), train=True)
        wanted += float(fnn.notes(alone)["size"])
    np.testing.assert_allclose(fnn.notes(after)["size"], wanted, rtol=1e-5)


def test_notes_of_a_cell_along_time():
    @fnn.compose(dense=fnn.dense(4))
    def cell(f, carry, x):
        h = jnp.tanh(f.dense(x) + carry)
        f.note("h", jnp.sum(h))
        return h, h

    rnn = fnn.rnn(fnn.cells.as_cell(cell, jnp.zeros_like))
    params, state = rnn.init(key(0), (2, 5, 4))
    for _ in range(2):
        y, state = rnn.apply(params, state, x_of(2, 5, 4), train=True)
        np.testing.assert_allclose(fnn.notes(state)["h"], jnp.sum(y), rtol=1e-5)


def test_a_note_reaches_the_loss_and_is_differentiable():
    net = fnn.serial(fnn.repeat(noting(), 2), fnn.batch_norm())
    tx = fnn.optim.sgd(0.1)
    ts = fnn.train.init(net, tx, key(0), (2, 4))

    def loss_fn(params, state, batch, key):
        y, state = net.apply(params, state, batch, key=key, train=True)
        return 0.0 * jnp.mean(y) + sum(fnn.notes(state).values()), (state, {})

    after, metrics = fnn.train.step(loss_fn, tx)(ts, x_of(2, 4))
    assert metrics["loss"] > 0 and (after.state["batch_norm1"]["mean"] != 0).any()
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), ts.params["repeat1"], after.params["repeat1"]
    )
    assert all(jax.tree.leaves(moved))


def test_wrong_notes():
    @fnn.compose(dense=fnn.dense(4))
    def vector(f, x):
        f.note("x", x)
        return f.dense(x)

    with pytest.raises(errors.ShapeError, match="f.note"):
        vector.init(key(0), (2, 4))

    @fnn.compose(layer=noting())
    def scanned(f, x):
        return jax.lax.scan(lambda c, _: (f.layer(c), None), x, length=3)[0]

    params, state = scanned.init(key(0), (2, 4))
    with pytest.raises(errors.TransformError, match="repeat"):
        scanned.apply(params, state, x_of(2, 4), train=True)
    assert scanned(params, x_of(2, 4)).shape == (2, 4)


# --- inputs by name


def test_inputs_go_by_name_through_every_layer():
    @fnn.compose(rnn=fnn.rnn(fnn.cells.gru(3)), out=fnn.dense(2))
    def body(f, x, resets=None):
        return f.out(f.rnn(x, resets=resets))

    x, resets = x_of(2, 5, 4), jnp.zeros((2, 5), bool).at[:, 2].set(True)
    plain = fnn.rnn(fnn.cells.gru(3))
    params, _ = plain.init(key(0), x, resets=resets)
    wanted = plain(params, x, None, None, resets)
    np.testing.assert_array_equal(plain(params, x, resets=resets), wanted)
    assert (wanted != plain(params, x)).any()
    for net, p in (
        (fnn.remat(plain), params),
        (fnn.cast(plain, jnp.float32), params),
        (fnn.serial(rnn=plain), {"rnn": params}),
        (
            fnn.wrap(fnn.serial(rnn=plain), lambda layer, *a, **k: layer.apply(*a, **k)),
            {"rnn": params},
        ),
    ):
        y, _ = net.apply(p, {}, x, resets=resets)
        np.testing.assert_array_equal(y, wanted)
        assert summary(net, x, resets=resets).params == summary(plain, x).params
    params, _ = body.init(key(0), x)
    assert (body(params, x, resets=resets) != body(params, x)).any()
    with pytest.raises(errors.InputError, match="inputs among x"):
        plain(params["rnn"], x, lenghts=resets)
    with pytest.raises(errors.InputError, match="x once"):
        plain(params["rnn"], x, x=x)
    with pytest.raises(errors.InputError, match="net.apply"):
        plain(params["rnn"], x, train=True)


def test_wrapping_by_hand_is_kept_and_replacing_by_hand_is_refused():
    def doubled(layer, params, state, x, *, key, train):
        y, state = layer.apply(params, state, x, key=key, train=train)
        return {"y": 2 * y}, state

    inner = fnn.serial(fnn.dense(3), jnp.tanh)
    net = fnn.serial(fnn.wrap(inner, doubled, name="doubled"), lambda d: d["y"])
    params, _ = net.init(key(0), (2, 4))
    swapped = fnn.swap(net, {"doubled1/tanh_1": jnp.sin})
    y = swapped(params, x_of(2, 4))
    linear = x_of(2, 4) @ params["doubled1"]["dense1"]["kernel"]
    np.testing.assert_allclose(y, 2 * np.sin(linear), rtol=1e-5)
    from dataclasses import replace

    by_hand = fnn.serial(body=replace(inner, apply=lambda *a, **k: (0, {})))
    for see in (
        lambda: fnn.swap(by_hand, {"body/tanh_1": jnp.sin}),
        lambda: summary(by_hand, (2, 4)),
    ):
        with pytest.raises(errors.ComposeError, match="body: .*fnn.wrap"):
            see()


def test_experts_with_tokens_of_their_own_and_params_without_a_call():
    experts = fnn.ensemble(fnn.dense(3), 5, in_axes=0)
    params, _ = experts.init(key(0), (5, 2, 4))
    x = x_of(5, 2, 4)
    wanted = np.einsum("ebi,eio->ebo", *(np.asarray(a, np.float64) for a in (x, params["kernel"])))
    np.testing.assert_allclose(experts(params, x), wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(errors.ShapeError, match=r"\[5, \.\.\.\]"):
        experts(params, x[:4])

    @fnn.compose(table=fnn.embedding(7, 4), head=fnn.dense(3))
    def tied(f, x):
        return (
            f.head(x) @ f.table.params_for(jax.ShapeDtypeStruct((), jnp.int32))["embedding"].T[:3]
        )

    params, _ = tied.init(key(0), (2, 4))
    assert tied(params, x_of(2, 4)).shape == (2, 7)
    rows = {row.path: row for row in summary(tied, (2, 4)).rows}
    assert rows["table"].params == 28 and rows["table"].flops == 0


def test_inputs_that_are_left_out_keep_their_defaults():
    @fnn.compose(a=fnn.dense(4))
    def body(f, x, scale=2.0, shift=None):
        return f.a(x) * scale + (0.0 if shift is None else shift)

    x = x_of(2, 4)
    for wrap in (lambda net: net, fnn.remat, fnn.serial, lambda net: fnn.cast(net, jnp.float32)):
        net = wrap(body)
        params, _ = net.init(key(0), x=(2, 4))
        np.testing.assert_array_equal(net(params, x=x), net(params, x))
    tanh_form = fnn.serial(jax.nn.gelu)
    np.testing.assert_array_equal(tanh_form({}, x=x), jax.nn.gelu(x))
    net = fnn.serial(fnn.rnn(fnn.cells.gru(2)))
    params, _ = net.init(key(0), (2, 3, 4))
    with pytest.raises(errors.InputError, match="the input x"):
        net(params, lengths=asarray([1, 2]))
