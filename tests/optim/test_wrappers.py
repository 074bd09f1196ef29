"""Masks, clips, constraints, averages and guards: what their rows in test_optimizers cannot say."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from fnn.optim import constraints
from fnn.testing import optimizers as kit
from tests.optim import oracles_wrappers as oracles

seeds = st.integers(0, 2**32 - 1)


def f32(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def steps_of(tx, grads, params, extra=None):
    """All updates, the last params and the last state, one jitted step after the other."""
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, **(extra or {})))
    opt_state, updates = tx.init(params), []
    for g in grads:
        u, opt_state = step(g, opt_state, params)
        params = fnn.optim.apply_updates(params, u)
        updates.append(u)
    return updates, params, opt_state


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# --- masks -------------------------------------------------------------------------------------

PARAMS = {
    "conv1": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
}
ONLY_KERNEL = {
    "conv1": {"kernel": True, "bias": False},
    "norm": {"scale": False, "bias": False},
}


@pytest.mark.parametrize(
    "mask",
    [
        ONLY_KERNEL,
        {"conv1": {"kernel": np.True_, "bias": False}, "norm": False},
        lambda params: jax.tree.map(lambda p: p.ndim == 2, params),
        "*/kernel",
        ("conv1/k*", "*/kernel"),
    ],
    ids=["bools", "prefix", "function", "pattern", "patterns"],
)
def test_every_spelling_of_a_mask(mask):
    tx = fnn.optim.masked(fnn.optim.trace(0.9), mask)
    opt_state = tx.init(PARAMS)
    assert len(jax.tree.leaves(opt_state)) == 1  # no velocity for the others
    for _ in range(2):
        updates, opt_state = tx.update(PARAMS, opt_state)
    np.testing.assert_allclose(updates["conv1"]["kernel"], 1.9, rtol=1e-6)
    for path, u in fnn.tree.to_paths(updates).items():
        assert path == "conv1/kernel" or (u == 1).all()


@pytest.mark.parametrize("mask", [True, False])
def test_a_single_bool_masks_all_or_nothing(mask):
    updates, _ = fnn.optim.masked(fnn.optim.sgd(0.5), mask).update(PARAMS, _masked_empty(mask))
    assert all((u == (-0.5 if mask else 1)).all() for u in jax.tree.leaves(updates))


def _masked_empty(mask):
    return fnn.optim.masked(fnn.optim.sgd(0.5), mask).init(PARAMS)


@pytest.mark.parametrize("mask", [1, 0.5, {"a": 1}, {"a": jnp.array(True)}, ("a", 1)])
def test_what_is_no_mask(mask):
    for build in (fnn.optim.set_to_zero, partial(fnn.optim.masked, fnn.optim.sgd(0.1))):
        with pytest.raises(errors.OptionError, match="a mask"):
            build(mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"conv1": True}, "to be like the params"),
        ({"conv1": {"kernel": True}, "norm": False}, "to be like the params"),
        (lambda p: jax.tree.map(jnp.ndim, p), "tree of bools"),
        ("*/weight", "did you mean|one of the"),
    ],
)
def test_masks_that_do_not_fit(mask, message):
    tx = fnn.optim.masked(fnn.optim.sgd(0.1), mask)
    for call in (tx.init, jax.jit(tx.init)):
        with pytest.raises(errors.ParamsError, match=message):
            call(PARAMS)


def test_masked_hands_the_chosen_part_of_extra_arguments_on():
    seen = {}

    def update(grads, state, params=None, *, grad, value, value_fn, **_):
        seen.update(grad=grad, value=value, at=value_fn(jax.tree.map(lambda p: 3 * p, params)))
        return grads, state

    def height(params):
        return sum(jnp.sum(p) for p in jax.tree.leaves(params))

    inner = fnn.optim.Transform(lambda params: (), update)
    tx = fnn.optim.masked(inner, "*/kernel")
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad=PARAMS, value=1.0, value_fn=height, other=None)
    assert [k.shape for k in jax.tree.leaves(seen["grad"])] == [(2, 3)]
    assert seen["value"] == 1.0
    assert seen["at"] == 6 * 3 + 9  # three times the kernel, the others as they are


def test_masks_nest():
    inner = fnn.optim.masked(fnn.optim.sgd(0.5), "*/bias")
    tx = fnn.optim.masked(inner, "norm/*")
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    moved = {path for path, u in fnn.tree.to_paths(updates).items() if (u != 1).any()}
    assert moved == {"norm/bias"}


@pytest.mark.parametrize("outer", ["optax", "fnn"])
def test_masks_of_either_library_hold_the_others(outer):
    optax = pytest.importorskip("optax")
    of_outer, of_inner = (optax, fnn.optim) if outer == "optax" else (fnn.optim, optax)
    inner = of_inner.masked(of_inner.sgd(0.5, momentum=0.9), lambda p: jax.tree.map(
        lambda a: a.ndim == 1, p
    ))  # fmt: skip
    tx = of_outer.masked(inner, {"conv1": True, "norm": False})
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    moved = {path for path, u in fnn.tree.to_paths(updates).items() if (u != 1).any()}
    assert moved == {"conv1/bias"}


def test_partition_gives_each_leaf_to_its_label():
    labels = {"conv1": "conv", "norm": {"scale": "scale", "bias": "still"}}
    transforms = {
        "conv": fnn.optim.sgd(1.0),
        "scale": fnn.optim.adam(0.1),
        "still": fnn.optim.set_to_zero(True),
        "nobody": fnn.optim.adam(1.0),
    }
    tx = fnn.optim.partition(transforms, labels)
    opt_state = tx.init(PARAMS)
    assert sorted(opt_state.inner_states) == sorted(transforms)
    updates, _ = jax.jit(tx.update)(PARAMS, opt_state, PARAMS)
    flat = fnn.tree.to_paths(updates)
    assert (flat["conv1/kernel"] == -1).all()
    assert (flat["conv1/bias"] == -1).all()
    np.testing.assert_allclose(flat["norm/scale"], -0.1, rtol=1e-6)
    assert (flat["norm/bias"] == 0).all()
    same(updates, tx.update(PARAMS, opt_state)[0])  # params are optional where none are read


def test_partition_refuses():
    sgd = fnn.optim.sgd(0.1)
    for wrong in ({}, [sgd], {"a": 3}):
        with pytest.raises(errors.OptionError, match="transform"):
            fnn.optim.partition(wrong, "a")
    with pytest.raises(errors.ParamsError, match="norm/bias b"):
        fnn.optim.partition({"a": sgd}, {"conv1": "a", "norm": {"scale": "a", "bias": "b"}}).init(
            PARAMS
        )
    with pytest.raises(errors.ParamsError, match="labels to be like the params"):
        fnn.optim.partition({"a": sgd}, {"conv1": "a"}).init(PARAMS)
    with pytest.raises(errors.ParamsError, match="PartitionState"):
        fnn.optim.partition({"a": sgd}, "a").update(PARAMS, ())


def test_frozen_means_unchanged():
    """Whatever comes: NaN gradients, decay, momentum; and not even the sign of a zero moves."""
    params = {"body": jnp.asarray([1.0, -0.0, jnp.inf]), "head": jnp.ones(3)}
    grads = {"body": jnp.asarray([jnp.nan, 1.0, jnp.inf]), "head": jnp.ones(3)}
    tx = fnn.optim.chain(
        fnn.optim.add_decayed_weights(0.1), fnn.optim.adam(0.1), fnn.optim.set_to_zero("body")
    )
    updates, after, _ = steps_of(tx, [grads] * 3, params)
    assert all((u["body"] == 0).all() for u in updates)
    assert (np.asarray(after["body"]) == np.asarray(params["body"])).all()
    assert (after["head"] != params["head"]).all()


def test_masks_by_kind():
    net = fnn.serial(fnn.dense(3), fnn.layer_norm(), fnn.weight_norm(fnn.dense(2)))
    specs, _ = net.specs((1, 4))
    params, _ = net.init(jax.random.key(0), (1, 4))
    mask = fnn.optim.of_kind(specs, "kernel")
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    chosen = {path for path, keep in fnn.tree.to_paths(mask).items() if keep}
    assert chosen == {path for path in fnn.tree.paths(params) if "kernel" in path}
    assert len(chosen) == 3  # gain and direction stand where a kernel stood
    both = fnn.tree.to_paths(fnn.optim.of_kind(specs, "bias", "scale"))
    assert {p for p, keep in both.items() if keep} == set(both) - chosen
    tx = fnn.optim.add_decayed_weights(0.1, mask)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert {p for p, u in fnn.tree.to_paths(updates).items() if (u != 0).any()} == chosen


def test_kinds_that_there_are_not():
    specs, _ = fnn.dense(3).specs((1, 4))
    with pytest.raises(errors.ParamsError, match="bias, kernel.*'?embedding"):
        fnn.optim.of_kind(specs, "embedding")
    with pytest.raises(errors.OptionError, match="one kind or more"):
        fnn.optim.of_kind(specs)
    with pytest.raises(errors.InputError, match="specs of Param"):
        fnn.optim.of_kind(fnn.dense(3).init(jax.random.key(0), (1, 4))[0], "kernel")
    for encode in (lambda p: {"half": p}, lambda p: {**p, "bias2": p["bias"]}):
        renamed, _ = fnn.reparam(fnn.dense(3), encode, lambda p: p).specs((1, 4))
        found = fnn.optim.of_kind(renamed, "kernel")  # by the end of their paths
        paths = [errors.path_of(p) for p, k in jax.tree_util.tree_leaves_with_path(found) if k]
        assert [path.split("/")[-1] for path in paths] == ["kernel"]
    hidden, _ = fnn.reparam(fnn.dense(3), lambda p: {"w": p["kernel"]}, dict).specs((1, 4))
    with pytest.raises(errors.ParamsError, match="value"):
        fnn.optim.of_kind(hidden, "kernel")


# --- chains with names -------------------------------------------------------------------------


def test_named_chain_keeps_states_by_name():
    grads = {"w": f32(3)}
    named = fnn.optim.named_chain(z=fnn.optim.trace(0.9), a=fnn.optim.sgd(0.1))
    plain = fnn.optim.chain(fnn.optim.trace(0.9), fnn.optim.sgd(0.1))
    opt_state = named.init(grads)
    assert set(opt_state) == {"a", "z"}
    same(opt_state["z"], plain.init(grads)[0])
    same(steps_of(named, [grads] * 3, grads)[0], steps_of(plain, [grads] * 3, grads)[0])
    for wrong in ((), {"z": ()}, plain.init(grads)):
        with pytest.raises(errors.ParamsError, match="states of z, a"):
            named.update(grads, wrong)
    with pytest.raises(errors.OptionError, match="a transform"):
        fnn.optim.named_chain(a=fnn.optim.sgd)


def test_a_bare_array_that_is_not_chosen():
    """The others' part of it is no tree at all, and asks for no params."""
    p = jnp.ones((3, 2))
    held = fnn.optim.masked(fnn.optim.add_decayed_weights(0.1), lambda p: False)
    assert (held.update(p, held.init(p), p)[0] == 1).all()
    both = {"a": fnn.optim.sgd(0.5), "b": fnn.optim.add_decayed_weights(0.1)}
    tx = fnn.optim.partition(both, lambda p: "a")
    assert (tx.update(p, tx.init(p), p)[0] == -0.5).all()


# --- clipping ----------------------------------------------------------------------------------


def test_global_norm_does_not_lose_small_leaves():
    """optax's is in the dtype of the gradients: a sum of ones in bfloat16 stops at 256."""
    optax = pytest.importorskip("optax")
    leaves = [jnp.ones((), jnp.bfloat16)] * 2000
    assert optax.tree.norm(leaves) == 16
    np.testing.assert_allclose(fnn.optim.global_norm(leaves), 2000**0.5, rtol=1e-6)
    half = jnp.full(2, 300.0, jnp.float16)
    assert jnp.isinf(optax.tree.norm(half))
    np.testing.assert_allclose(fnn.optim.global_norm(half), 300 * 2**0.5, rtol=1e-6)
    for size in (1e-30, 1e30):  # whose squares are no float32
        got = fnn.optim.global_norm({"a": jnp.full(2, size, jnp.float32)})
        np.testing.assert_allclose(got, size * 2**0.5, rtol=1e-6)
    with pytest.raises(errors.DtypeError):
        fnn.optim.global_norm({"a": jnp.arange(3)})


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_clipping_where_squares_are_no_floats(size):
    g = jnp.asarray([3 * size, 4 * size], jnp.float32)
    updates, _ = fnn.optim.clip_by_global_norm(size).update(g, ())
    np.testing.assert_allclose(updates, [0.6 * size, 0.8 * size], rtol=1e-6)
    updates, _ = fnn.optim.adaptive_grad_clip(size, eps=1.0).update(g, (), jnp.zeros(2))
    np.testing.assert_allclose(updates, [0.6 * size, 0.8 * size], rtol=1e-6)
    updates, _ = fnn.optim.clip_by_block_rms(size).update(g, ())
    np.testing.assert_allclose(updates, g / 12.5**0.5, rtol=1e-6)


def test_clipping_at_norm_zero():
    """optax: 0 / 0 for a norm of zero cut to zero, and NaN as its derivative everywhere."""
    optax = pytest.importorskip("optax")
    zero = jnp.zeros(2)

    def through(build, bound, g):
        return jnp.sum(build(bound).update(g, build(bound).init(g), g + 1)[0])

    ours = (
        fnn.optim.clip_by_global_norm,
        fnn.optim.clip_by_block_rms,
        fnn.optim.adaptive_grad_clip,
    )
    for build in ours:
        for bound in (0.0, 1.0):
            fn = partial(through, build, bound)
            value, slope, change = jax.jit(
                lambda g, fn=fn: (fn(g), jax.grad(fn)(g), jax.jvp(fn, (g,), (g + 1,))[1])
            )(zero)
            assert value == 0
            assert jnp.isfinite(slope).all() and jnp.isfinite(change)
    assert jnp.isnan(through(optax.clip_by_global_norm, 0.0, zero))
    assert jnp.isnan(jax.grad(partial(through, optax.clip_by_global_norm, 1.0))(zero)).all()


def test_units_of_adaptive_clipping_are_outputs():
    """Of a kernel [W, I, O] too, whose first axis alone optax takes for a unit; and of [1, O]."""
    optax = pytest.importorskip("optax")
    w, g = f32(3, 4, 2), 10 * f32(3, 4, 2, seed=1)
    want = oracles.adaptive_grad_clip([np.float64(g)], np.float64(w), 0.1, 1e-3)[0]
    got, _ = fnn.optim.adaptive_grad_clip(0.1).update(g, (), w)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    theirs, _ = optax.adaptive_grad_clip(0.1).update(g, (), w)
    assert np.abs(theirs - want).max() > 0.01
    first, _ = fnn.optim.adaptive_grad_clip(0.1, axis=0).update(g, (), w)
    np.testing.assert_allclose(first, theirs, rtol=1e-5)
    w, g = jnp.asarray([[1.0, 100.0]]), jnp.asarray([[5.0, 5.0]])
    got, _ = fnn.optim.adaptive_grad_clip(0.1).update(g, (), w)
    np.testing.assert_allclose(got, [[0.1, 5.0]], rtol=1e-6)


def test_centralized_units_are_outputs():
    """Yong et al. take the mean over what one output is computed from; optax over the rest."""
    optax = pytest.importorskip("optax")
    g = f32(3, 4, 2)
    got, _ = fnn.optim.centralize().update(g, ())
    np.testing.assert_allclose(jnp.sum(got, (0, 1)), 0, atol=1e-5)
    other, _ = fnn.optim.centralize(output_axis=0).update(g, ())
    np.testing.assert_allclose(
        other, optax.centralize().update(g, optax.EmptyState())[0], atol=1e-6
    )
    assert np.abs(got - other).max() > 0.1
    for same_as in (jnp.ones(3), jnp.ones(())):
        assert (fnn.optim.centralize().update(same_as, ())[0] == 1).all()


def test_zero_nans_tells_where():
    tx = fnn.optim.zero_nans()
    grads = {"a": jnp.asarray([jnp.nan, jnp.inf]), "b": jnp.ones(1, jnp.bfloat16)}
    opt_state = tx.init(grads)
    assert not any(jax.tree.leaves(opt_state))
    updates, opt_state = jax.jit(tx.update)(grads, opt_state)
    same(updates, {"a": jnp.asarray([0, jnp.inf]), "b": grads["b"]})
    assert opt_state.found_nan["a"] and not opt_state.found_nan["b"]
    assert not any(jax.tree.leaves(tx.update(updates, opt_state)[1]))


def test_noise_has_the_papers_variance():
    """20,000 draws at each of 4 steps: the mean and the variance within five sigma."""
    n, eta, gamma = 20_000, 0.3, 0.55
    tx = fnn.optim.add_noise(eta, gamma, jax.random.key(3))
    grads = {"a": jnp.ones(n), "b": jnp.ones(n, jnp.bfloat16)}
    updates, _, opt_state = steps_of(tx, [grads] * 4, grads)
    draws = []
    for t, u in enumerate(updates):
        variance = eta / (1 + t) ** gamma
        noise = np.float64(u["a"]) - 1
        assert abs(noise.mean()) < 5 * (variance / n) ** 0.5
        assert abs(noise.var() / variance - 1) < 5 * (2 / n) ** 0.5
        assert abs((np.float64(u["b"]) - 1).var() / variance - 1) < 0.06
        draws += [noise / variance**0.5, (np.float64(u["b"]) - 1) / variance**0.5]
    correlations = np.corrcoef(draws) - np.eye(8)
    assert np.abs(correlations).max() < 5 / n**0.5  # between steps, and between leaves
    assert opt_state.count == 4
    again, _, _ = steps_of(tx, [grads] * 4, grads)
    same(again, updates)
    other, _, _ = steps_of(fnn.optim.add_noise(eta, gamma, jax.random.key(4)), [grads], grads)
    assert (other[0]["a"] != updates[0]["a"]).any()


# --- constraints -------------------------------------------------------------------------------

arrays = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=5).map(np.float32)


@cache
def onto(name):
    return {
        "simplex": jax.jit(lambda x, size: constraints.simplex(size)(x)),
        "l2_ball": jax.jit(lambda x, size: constraints.l2_ball(size)(x)),
        "box": jax.jit(lambda x, size: constraints.box(-size, size)(x)),
    }[name]


@pytest.mark.parametrize("name", ["simplex", "l2_ball", "box"])
@given(x=arrays, size=st.sampled_from([0.0, 0.5, 1.0, 7.0]))
def test_projections_are_the_nearest_points(name, x, size):
    if name == "box":
        want = oracles.box(np.float64(x), -size, size)
    else:
        want = getattr(oracles, name)(np.float64(x), size)
    got = onto(name)(jnp.asarray(x), jnp.float32(size))
    np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_allclose(onto(name)(got, jnp.float32(size)), got, atol=1e-5)  # and stay


def test_projections_of_extremes():
    simplex = jax.jit(constraints.simplex())
    np.testing.assert_allclose(simplex(jnp.asarray([1e30, 1.0, -1e30])), [1, 0, 0])
    np.testing.assert_allclose(simplex(jnp.full(4, 1e30)), 0.25)
    np.testing.assert_allclose(simplex(jnp.zeros((2, 3))), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(simplex(jnp.asarray(-3.0)), 1)
    assert simplex(jnp.zeros((0, 3))).shape == (0, 3)
    rows = constraints.l2_ball(1.0, axis=0)(jnp.asarray([[3.0, 0.3], [4.0, 0.4]]))
    np.testing.assert_allclose(rows, [[0.6, 0.3], [0.8, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(constraints.l2_ball(1e30)(jnp.full(4, 1e30)), 5e29, rtol=1e-6)
    got = jax.grad(lambda x: jnp.sum(constraints.l2_ball(1.0)(x)))(jnp.zeros(2))
    np.testing.assert_allclose(got, 1)
    x = jnp.asarray([0.3, 0.4, -2.0])
    np.testing.assert_allclose(
        jax.jacobian(simplex)(x), [[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]], atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_projected_params_are_feasible(dtype):
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.normal(size=1000), dtype)
    u = jnp.asarray(rng.normal(size=1000) * 10.0 ** rng.uniform(-3, 3, 1000), dtype)
    for fn, low, high in (
        (constraints.non_negative, 0, np.inf),
        (constraints.box(0.25, 1.0), 0.25, 1),
    ):
        step, _ = fnn.optim.project(fn).update(u, (), p)
        after = np.float64(fnn.optim.apply_updates(p, step))
        slack = 0 if low == 0 else 8 * float(jnp.finfo(dtype).eps)
        assert (after >= low - slack).all() and (after <= high + slack).all()
        assert after.dtype == np.float64 and step.dtype == dtype


def test_a_run_with_projected_params_finds_the_constrained_minimum():
    """The nearest point of the simplex to a target is the projection of the target."""
    target = jnp.asarray([0.9, 0.5, -0.3, 0.1])
    tx = fnn.optim.chain(fnn.optim.sgd(0.3, momentum=0.5), fnn.optim.project(constraints.simplex()))

    def step(carry, _):
        p, state = carry
        u, state = tx.update(p - target, state, p)
        return (p + u, state), None

    start = jnp.full(4, 0.25)
    (p, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, 60)
    np.testing.assert_allclose(p, oracles.simplex(np.float64(target), 1.0), atol=1e-4)


# --- averages ----------------------------------------------------------------------------------


def iterates(tx, grads, params):
    step = jax.jit(tx.update)
    opt_state, path = tx.init(params), []
    for g in grads:
        u, opt_state = step(g, opt_state, params)
        params = fnn.optim.apply_updates(params, u)
        path.append(params)
    return path, opt_state


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({}, oracles.mean_of_iterates),
        ({"start": 3}, partial(oracles.mean_of_iterates, start=3)),
        ({"decay": 0.5}, partial(oracles.ema_of_iterates, decay=0.5)),
        ({"decay": 0.0}, lambda ps: ps[-1]),
        ({"decay": 0.999}, partial(oracles.ema_of_iterates, decay=0.999)),
    ],
)
def test_averages_of_params(options, oracle):
    tx = fnn.optim.chain(fnn.optim.sgd(0.3), fnn.optim.average_params(**options))
    params = {"a": f32(3), "b": f32(2, 2)}
    grads = [{"a": f32(3, seed=i), "b": f32(2, 2, seed=i)} for i in range(7)]
    for n in (1, 2, 7):
        path, opt_state = iterates(tx, grads[:n], params)
        average = fnn.optim.averaged_params(opt_state, params)
        for name in params:
            want = oracle([np.float64(p[name]) for p in path])
            np.testing.assert_allclose(average[name], want, rtol=2e-4, atol=1e-5)
    same(fnn.optim.averaged_params(tx.init(params), params), params)


def test_averages_of_narrow_params_are_of_what_they_became():
    """In float32, of iterates in bfloat16; XLA would take what they were before rounding."""
    tx, p = fnn.optim.average_params(), jnp.asarray([1.0, 3.0], jnp.bfloat16)
    step = jnp.asarray([1e-3, 2**-6], jnp.bfloat16)  # the first is rounded away in p + u
    path, opt_state = iterates(tx, [step] * 100, p)
    want = np.mean([np.float64(q) for q in path], 0)
    np.testing.assert_allclose(opt_state.average, want, rtol=1e-5)
    assert want[0] == 1
    assert fnn.optim.averaged_params(opt_state, p).dtype == jnp.bfloat16


def test_averages_are_found_in_any_state():
    params = {"a": jnp.ones(2), "b": jnp.zeros(2)}
    average = fnn.optim.average_params()
    tx = fnn.optim.named_chain(
        rate=fnn.optim.sgd(1.0), mean=fnn.optim.masked(average, {"a": True, "b": False})
    )
    _, opt_state = tx.update(params, tx.init(params), params)
    found = fnn.optim.averaged_params(opt_state, {"a": jnp.ones(2), "b": jnp.full(2, 7.0)})
    np.testing.assert_array_equal(found["a"], 0)
    np.testing.assert_array_equal(found["b"], 7)
    for wrong in (fnn.optim.sgd(0.1), fnn.optim.chain(average, average)):
        with pytest.raises(errors.ParamsError, match="one average_params or lookahead"):
            fnn.optim.averaged_params(wrong.init(params), params)
    with pytest.raises(errors.ParamsError, match="params like the average"):
        fnn.optim.averaged_params(average.init(params), {"a": jnp.ones(2)})


def test_lookahead_is_optaxs():
    optax = pytest.importorskip("optax")
    params, grads = f32(3), [f32(3, seed=i) for i in range(12)]
    ours = fnn.optim.lookahead(fnn.optim.adam(0.1), 4, 0.3)
    theirs = optax.lookahead(optax.adam(0.1), 4, 0.3)
    path, opt_state = iterates(ours, grads, params)
    both, state = optax.LookaheadParams.init_synced(params), None
    state = theirs.init(both)
    with jax.numpy_dtype_promotion("standard"):
        for g, p in zip(grads, path, strict=True):
            u, state = theirs.update(g, state, both)
            both = optax.apply_updates(both, u)
            np.testing.assert_allclose(p, both.fast, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        fnn.optim.averaged_params(opt_state, params), both.slow, rtol=1e-4, atol=1e-5
    )


def test_lookahead_takes_a_traced_period():
    p, grads = f32(3), [f32(3, seed=i) for i in range(5)]

    @jax.jit
    def end(period):
        tx = fnn.optim.lookahead(fnn.optim.sgd(0.1), period)
        q, state = p, tx.init(p)
        for g in grads:
            u, state = tx.update(g, state, q)
            q = q + u
        return q

    ends = [end(jnp.int32(k)) for k in (1, 2, 3)]
    for k, got in zip((1, 2, 3), ends, strict=True):
        path, _ = iterates(fnn.optim.lookahead(fnn.optim.sgd(0.1), k), grads, p)
        np.testing.assert_allclose(got, path[-1], rtol=1e-5, atol=1e-6)


# --- gradients that are not finite -------------------------------------------------------------


@cache
def guarded():
    tx = fnn.optim.skip_nonfinite(fnn.optim.adam(0.1))
    return tx, jax.jit(tx.update)


@given(
    bad=st.lists(st.sampled_from(["", "", "nan", "inf", "-inf", "huge"]), max_size=12), seed=seeds
)
def test_bad_gradients_leave_no_trace(bad, seed):
    """The good steps are, bit by bit, those of a run without the bad ones; a huge one is bad since
    its square is infinite, and would stand in Adam's second moment for ever."""
    tx, step = guarded()
    rng = np.random.default_rng(seed)
    params = {"a": jnp.ones(3), "b": jnp.ones(())}
    state = clean = tx.init(params)
    in_a_row = 0
    for kind in bad:
        good = {"a": jnp.asarray(rng.normal(size=3), jnp.float32), "b": jnp.ones(())}
        if kind:
            wrong = good["a"].at[rng.integers(3)].set(1e30 if kind == "huge" else float(kind))
            updates, new = step(good | {"a": wrong}, state, params)
            same(new.inner_state, state.inner_state)
            assert all((u == 0).all() for u in jax.tree.leaves(updates))
            in_a_row += 1
        else:
            updates, new = step(good, state, params)
            wanted, clean = step(good, clean, params)
            same(updates, wanted)
            same(new.inner_state, clean.inner_state)
            in_a_row = 0
        state = new
        assert state.notfinite_count == in_a_row
        assert state.last_finite == (in_a_row == 0)
    assert state.total_notfinite == sum(map(bool, bad))


def test_optax_lets_nan_into_the_moments_for_ever():
    optax = pytest.importorskip("optax")
    params, bad = jnp.ones(2), jnp.asarray([jnp.nan, 1.0])
    ours = fnn.optim.skip_nonfinite(fnn.optim.adam(0.1))
    theirs = optax.apply_if_finite(optax.adam(0.1), max_consecutive_errors=2)
    last = {}
    with jax.numpy_dtype_promotion("standard"):
        for name, tx in (("fnn", ours), ("optax", theirs)):
            state = tx.init(params)
            for g in [params] + [bad] * 4 + [params] * 3:
                updates, state = jax.jit(tx.update)(g, state, params)
            last[name] = updates
    np.testing.assert_allclose(last["fnn"], -0.1, rtol=1e-3)
    assert jnp.isnan(last["optax"]).any()


def test_skipping_through_vmap_and_derivatives():
    tx = fnn.optim.skip_nonfinite(fnn.optim.adam(0.1))
    params = jnp.ones(2)

    def two(g):
        updates, state = tx.update(g, tx.init(params), params)
        return jnp.sum(tx.update(updates, state, params)[0])

    lanes = jnp.asarray([[1.0, 2.0], [jnp.nan, 1.0], [jnp.inf, 1.0]])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(two)))(lanes)
    assert jnp.isfinite(values).all() and jnp.isfinite(slopes).all()
    states = jax.vmap(lambda g: tx.update(g, tx.init(params), params)[1].total_notfinite)(lanes)
    np.testing.assert_array_equal(states, [0, 1, 1])


# --- narrow params -----------------------------------------------------------------------------


def test_small_steps_of_bfloat16_params():
    """1e-3 is less than half the spacing at 1, so they never move; master weights and rounding by
    chance do. 50 steps of 1e-3 lead to 0.95."""
    optax = pytest.importorskip("optax")
    p, g = jnp.ones(512, jnp.bfloat16), jnp.ones(512, jnp.bfloat16)

    def end(tx, apply=fnn.optim.apply_updates):
        q, state, step = p, tx.init(p), jax.jit(tx.update)
        for _ in range(50):
            u, state = step(g, state, q)
            q = apply(q, u)
        assert q.dtype == jnp.bfloat16
        return np.float64(q)

    with jax.numpy_dtype_promotion("standard"):
        assert (end(optax.sgd(1e-3), optax.apply_updates) == 1).all()
        by_optax = end(fnn.optim.master_weights(fnn.optim.sgd(1e-3)), optax.apply_updates)
    assert (end(fnn.optim.sgd(1e-3)) == 1).all()
    mastered = end(fnn.optim.master_weights(fnn.optim.sgd(1e-3)))
    np.testing.assert_array_equal(mastered, float(jnp.bfloat16(0.95)))
    np.testing.assert_array_equal(by_optax, mastered)
    rounded = end(fnn.optim.stochastic_rounding(fnn.optim.sgd(1e-3), jax.random.key(0)))
    # a step moves by 1 / 256 with probability 0.256: the deviation of 512 means of 50 steps
    sigma = (50 * 0.256 * 0.744) ** 0.5 / 256 / 512**0.5
    assert abs(rounded.mean() - 0.95) < 5 * sigma


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_params_are_the_rounded_masters(dtype):
    tx = fnn.optim.master_weights(fnn.optim.adam(0.05))
    rng = np.random.default_rng(0)
    p = {"narrow": jnp.asarray(rng.normal(size=200) * 0.1, dtype), "wide": f32(3)}
    grads = [{"narrow": jnp.asarray(rng.normal(size=200), dtype), "wide": f32(3, seed=i)}
             for i in range(20)]  # fmt: skip
    alone = fnn.optim.adam(0.05)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), p)
    state, state_alone = tx.init(p), alone.init(wide)
    assert state.master["wide"] is None
    for g in grads:
        u, state = jax.jit(tx.update)(g, state, p)
        p = fnn.optim.apply_updates(p, u)
        g = jax.tree.map(lambda a: a.astype(jnp.float32), g)
        u, state_alone = jax.jit(alone.update)(g, state_alone, wide)
        wide = fnn.optim.apply_updates(wide, u)
        np.testing.assert_array_equal(p["narrow"], state.master["narrow"].astype(dtype))
        np.testing.assert_allclose(state.master["narrow"], wide["narrow"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(p["wide"], wide["wide"], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_by_chance_is_unbiased(dtype):
    """100,000 draws for each of six sums: only their two neighbours, and in the right shares."""
    n = 100_000
    starts = [1.0, 1.0, -3.0, 0.1, 0.0, 1000.0]
    by = [1e-3, -2e-4, 1e-3, 1e-5, 1e-3, 0.1]
    p = jnp.broadcast_to(jnp.asarray(starts, dtype), (n, 6))
    tx = fnn.optim.stochastic_rounding(
        fnn.optim.stateless(lambda p, g: jnp.broadcast_to(jnp.asarray(by, g.dtype), g.shape)),
        jax.random.key(1),
    )
    u, state = jax.jit(tx.update)(p, tx.init(p), p)
    assert (jax.random.key_data(state.key) != jax.random.key_data(jax.random.key(1))).any()
    after = fnn.optim.apply_updates(p, u)
    assert after.dtype == dtype
    after = np.float64(after)
    for i, step in enumerate(by):
        exact = float(p[0, i]) + step
        values = np.unique(after[:, i])
        assert len(values) == 2 and values[0] < exact < values[1]
        between = jnp.nextafter(jnp.asarray(values[0], dtype), jnp.asarray(jnp.inf, dtype))
        assert float(between) == values[1]
        assert abs(after[:, i].mean() - exact) < 5 * after[:, i].std() / n**0.5 + 1e-7 * abs(exact)


def test_rounding_by_chance_leaves_what_needs_none():
    p = {"narrow": jnp.asarray([1.0, jnp.inf, jnp.nan], jnp.bfloat16), "wide": f32(3)}
    g = {"narrow": jnp.asarray([0.5, 1.0, 1.0], jnp.bfloat16), "wide": f32(3)}
    tx = fnn.optim.stochastic_rounding(fnn.optim.sgd(1.0), jax.random.key(0))
    u, _ = tx.update(g, tx.init(p), p)
    after = fnn.optim.apply_updates(p, u)
    np.testing.assert_array_equal(np.float32(after["narrow"]), [0.5, np.inf, np.nan])
    np.testing.assert_array_equal(u["wide"], -g["wide"])
    slope = jax.grad(
        lambda g: jnp.sum(tx.update({**p, "narrow": g}, tx.init(p), p)[0]["narrow"][0])
    )
    np.testing.assert_array_equal(np.float32(slope(g["narrow"])), [-1, 0, 0])


@pytest.mark.parametrize("name", ["master_weights", "stochastic_rounding"])
def test_wrappers_of_narrow_params_hold_the_contract(name):
    """All of check_optimizer but the dtype of updates, which is float32 for narrow params."""
    sgd = fnn.optim.sgd(0.1, momentum=0.9)
    tx = {
        "master_weights": fnn.optim.master_weights(sgd),
        "stochastic_rounding": fnn.optim.stochastic_rounding(sgd, jax.random.key(0)),
    }[name]
    valley = kit._valley()
    kit.check_empty(tx)
    kit.check_runs(tx, valley, jax.jit(partial(kit._run, tx)))
    kit.check_lanes(tx, valley, jax.jit(partial(kit._run, tx)))
    kit.check_host(tx, valley)
    kit.check_finite_derivatives(tx, valley, True)
    kit.check_still(tx)
    narrow = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones((), jnp.float32)}
    state = tx.init(narrow)
    u, after = jax.eval_shape(tx.update, narrow, state, narrow)
    assert [a.dtype for a in jax.tree.leaves(u)] == [jnp.float32] * 2
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
    with pytest.raises(errors.ParamsError, match="params, which"):
        tx.update(narrow, state)


def test_value_fn_of_narrow_params():
    seen = []

    def update(grads, state, params=None, **extra):
        seen.append((extra["value_fn"](params).dtype, extra["grad"].dtype, params.dtype))
        return grads, state

    tx = fnn.optim.master_weights(fnn.optim.Transform(lambda p: (), update))
    p = jnp.ones(2, jnp.bfloat16)
    tx.update(p, tx.init(p), p, grad=p, value_fn=jnp.sum)
    assert seen == [(jnp.bfloat16, jnp.float32, jnp.float32)]


# --- wrong options -----------------------------------------------------------------------------

o, sgd = fnn.optim, fnn.optim.sgd(0.1)
WRONG = {
    "decay below zero": (lambda: o.add_decayed_weights(-1.0), errors.OptionError),
    "decay no number": (lambda: o.add_decayed_weights("a"), errors.OptionError),
    "clip": (lambda: o.clip(-1.0), errors.OptionError),
    "clip by norm": (lambda: o.clip_by_global_norm(-1.0), errors.OptionError),
    "clip by a vector": (lambda: o.clip_by_global_norm(jnp.ones(2)), errors.OptionError),
    "clip by rms": (lambda: o.clip_by_block_rms(float("nan")), errors.OptionError),
    "clipping": (lambda: o.adaptive_grad_clip(-0.1), errors.OptionError),
    "eps": (lambda: o.adaptive_grad_clip(0.1, eps=-1), errors.OptionError),
    "output axis": (lambda: o.centralize(1), errors.OptionError),
    "eta": (lambda: o.add_noise(-1.0, 0.5, jax.random.key(0)), errors.OptionError),
    "noise without key": (lambda: o.add_noise(1.0, 0.5, 3), errors.RandomKeyError),
    "onto": (lambda: o.project(3), errors.OptionError),
    "box": (lambda: constraints.box(1.0, 0.0), errors.OptionError),
    "radius": (lambda: constraints.l2_ball(-1.0), errors.OptionError),
    "total": (lambda: constraints.simplex(-1.0), errors.OptionError),
    "ema": (lambda: o.ema(1.0), errors.OptionError),
    "average": (lambda: o.average_params(decay=1.5), errors.OptionError),
    "average start": (lambda: o.average_params(start=-1), errors.OptionError),
    "sync period": (lambda: o.lookahead(sgd, 0), errors.OptionError),
    "broken sync period": (lambda: o.lookahead(sgd, 2.5), errors.OptionError),
    "slow step size": (lambda: o.lookahead(sgd, 5, 1.5), errors.OptionError),
    "no transform to look ahead": (lambda: o.lookahead(o.sgd), errors.OptionError),
    "no transform to mask": (lambda: o.masked(o.sgd, True), errors.OptionError),
    "no transform to guard": (lambda: o.skip_nonfinite(3), errors.OptionError),
    "no transform to master": (lambda: o.master_weights(None), errors.OptionError),
    "no transform to round": (
        lambda: o.stochastic_rounding(None, jax.random.key(0)),
        errors.OptionError,
    ),
    "no key to round": (lambda: o.stochastic_rounding(sgd, None), errors.RandomKeyError),
    "another's state": (lambda: o.skip_nonfinite(sgd).update(jnp.ones(2), ()), errors.ParamsError),
    "integers": (
        lambda: o.skip_nonfinite(sgd).update(jnp.arange(2), o.skip_nonfinite(sgd).init(0.0)),
        errors.DtypeError,
    ),
    "no params to decay": (
        lambda: o.add_decayed_weights(0.1).update(jnp.ones(2), ()),
        errors.ParamsError,
    ),
    "no such path": (lambda: o.set_to_zero("a*").init({"b": jnp.ones(2)}), errors.ParamsError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    call, kind = WRONG[name]
    with pytest.raises(kind):
        call()


def test_members_are_skipped_one_by_one():
    net = fnn.ensemble(fnn.serial(fnn.batch_norm(), fnn.dense(2)), 2, in_axes=0)
    tx = fnn.optim.each_member(fnn.optim.skip_nonfinite(fnn.optim.adam(0.1)))
    ts = fnn.train.init(net, tx, jax.random.key(0), (2, 4, 3))
    loss = fnn.train.supervised(net, fnn.losses.squared_error, names=("x", "y"))
    step = fnn.train.step(loss, tx)
    x = jax.random.normal(jax.random.key(1), (2, 4, 3)).at[1].set(jnp.inf)
    after, _ = step(ts, {"x": x, "y": jnp.ones((2, 4, 2))})
    for i, moved in ((0, True), (1, False)):
        pairs = zip(*(jax.tree.leaves((s.params, s.state)) for s in (ts, after)), strict=True)
        assert any(bool((a[i] != b[i]).any()) for a, b in pairs) == moved, i
    np.testing.assert_array_equal(after.opt_state.total_notfinite, [0, 1])
