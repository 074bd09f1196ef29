"""Layers run by a transform of JAX against loops over their members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.layers.support import assert_trees_equal, inner, key, member, normal

# --- repeat


def test_repeat_is_the_loop_over_its_members():
    net = fnn.repeat(inner(), 3)
    params, state = net.init(key(), (6, 4))
    x = normal(6, 4)
    y, wanted = net(params, x, state=state), x
    for i in range(3):
        wanted = inner()(member(params, i), wanted, state=member(state, i))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    kernel = params["dense1"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    np.testing.assert_allclose(kernel.std(), 0.5, rtol=0.3)  # fans are one member's


def test_repeat_in_training_has_a_key_and_statistics_for_each_member():
    net = fnn.repeat(inner(), 3)
    params, state = net.init(key(), (50, 4))
    x = normal(50, 4)
    y, after = net.apply(params, state, x, key=key(5), train=True)
    wanted = x
    for i in range(3):
        own = jax.random.fold_in(key(5), i)
        wanted, new = inner().apply(
            member(params, i), member(state, i), wanted, key=own, train=True
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                     member(after, i), new)  # fmt: skip
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    dropped = fnn.repeat(fnn.dropout(0.5), 4)
    y, _ = dropped.apply({}, {}, jnp.ones(4000), key=key(), train=True)
    assert abs((np.asarray(y) != 0).mean() - 1 / 16) < 0.02  # four masks, not one


def test_members_do_not_depend_on_how_many_there_are():
    for combine in (fnn.repeat, fnn.ensemble):
        few, _ = combine(inner(), 2).init(key(), (1, 4))
        many, _ = combine(inner(), 5).init(key(), (1, 4))
        assert_trees_equal(member(many, 1), member(few, 1))


def test_repeat_compiles_one_member():
    traced = []

    def act(x):
        traced.append(None)
        return jnp.tanh(x)

    def lines(n):
        net = fnn.repeat(fnn.serial(fnn.dense(4), act), n)
        params, _ = net.init(key(), (2, 4))
        return len(jax.jit(net).lower(params, normal(2, 4)).as_text().splitlines())

    assert lines(3) == lines(100)
    assert len(traced) == 4  # each: once for specs, once for the program


def test_repeat_passes_further_inputs_to_all():
    @fnn.compose(dense=fnn.dense(4))
    def masked(f, x, mask):
        return jnp.where(mask, f.dense(x), x)

    net = fnn.serial(fnn.repeat(masked, 3))
    mask = jnp.arange(4) < 2
    params, _ = net.init(key(), (2, 4), mask)
    x = normal(2, 4)
    np.testing.assert_array_equal(net(params, x, mask)[:, 2:], x[:, 2:])


def test_repeat_of_what_changes_its_input():
    with pytest.raises(errors.ShapeError, match="repeat: expected layer\\(x\\) .* as in x"):
        fnn.repeat(fnn.dense(3), 2).init(key(), (1, 4))
    cast = fnn.serial(r=fnn.repeat(lambda x: x.astype(jnp.bfloat16), 2))
    for call in (cast, jax.jit(cast)):
        with pytest.raises(errors.DtypeError, match=r"^r: expected layer\(x\) .* as in x"):
            call({}, normal(1, 4))
    with pytest.raises(errors.InputError, match="1 or more inputs, got 0"):
        fnn.repeat(fnn.dense(3), 2).init(key())


@pytest.mark.parametrize("combine", [fnn.repeat, fnn.ensemble])
def test_params_of_another_number_are_refused(combine):
    net = fnn.serial(r=combine(inner(), 2))
    params, state = net.init(key(), (2, 4))
    others, _ = fnn.serial(r=combine(inner(), 3)).init(key(), (2, 4))
    for call in (net, jax.jit(net)):
        with pytest.raises(errors.ParamsError, match="^r: expected batch_norm1/bias with first"):
            call(others, normal(2, 4), state=state)
    for n in (0, -1, 2.5, None, True, "3"):
        with pytest.raises(errors.OptionError, match="n to be an int of at least 1"):
            combine(inner(), n)


def test_repeat_of_repeat_and_of_derived():
    net = fnn.repeat(fnn.repeat(fnn.weight_norm(fnn.dense(4)), 2), 3)
    params, _ = net.init(key(), (1, 4))
    assert params["kernel"]["direction"].shape == (3, 2, 4, 4)
    gain = np.linalg.norm(params["kernel"]["direction"], axis=-2)
    np.testing.assert_allclose(params["kernel"]["gain"], gain, rtol=1e-5)
    again, _ = jax.jit(lambda k: net.init(k, (1, 4)))(key())
    wanted = params["kernel"]["direction"]
    np.testing.assert_allclose(again["kernel"]["direction"], wanted, rtol=1e-5, atol=1e-6)


# --- ensemble and remat


def test_ensemble_is_its_members_side_by_side():
    net = fnn.ensemble(inner(), 3)
    params, state = net.init(key(), (50, 4))
    x = normal(50, 4)
    y, after = net.apply(params, state, x, key=key(5), train=True)
    for i in range(3):
        own = jax.random.fold_in(key(5), i)
        wanted, new = inner().apply(member(params, i), member(state, i), x, key=own, train=True)
        np.testing.assert_allclose(y[i], wanted, rtol=1e-4, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                     member(after, i), new)  # fmt: skip


def test_remat_is_the_layer_with_less_kept():
    net, plain = fnn.remat(inner()), inner()
    params, state = net.init(key(), (6, 4))
    assert_trees_equal((params, state), plain.init(key(), (6, 4)))
    x = normal(6, 4)

    def loss(net):
        def fn(params):
            y, after = net.apply(params, state, x, key=key(3), train=True)
            return jnp.sum(y**2), after

        return jax.value_and_grad(fn, has_aux=True)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        loss(net)(params),
        loss(plain)(params),
    )
    text = str(jax.make_jaxpr(loss(net))(params))
    assert "remat" in text or "checkpoint" in text
    kept = jax.checkpoint_policies.everything_saveable
    assert_trees_equal(
        fnn.remat(inner(), kept)(params, x, state=state), plain(params, x, state=state)
    )


def test_wrapping_renames_nothing():
    names = [path for path in _paths(inner())]
    for wrapped in (
        fnn.remat(inner()), fnn.cast(inner(), jnp.bfloat16), fnn.repeat(inner(), 2),
        fnn.ensemble(inner(), 2), fnn.spectral_norm(inner()),
    ):  # fmt: skip
        assert _paths(wrapped) == names
        assert _paths(wrapped.map(lambda path, layer: layer)) == names
        params, _ = wrapped.init(key(), (1, 4))
        assert list(params) == ["batch_norm1", "dense1"] or set(params) == {"batch_norm1", "dense1"}
    assert fnn.serial(fnn.remat(fnn.dense(2))).init(key(), (1, 4))[0].keys() == {"dense1"}


def _paths(net):
    found = []
    net.map(lambda path, layer: found.append(path) or layer)
    return found
