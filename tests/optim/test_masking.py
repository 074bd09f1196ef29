"""Masks, partitions and kinds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.optim.contract import contract
from tests.optim.rows_masking import ROWS
from tests.optim.support import same, steps_of
from tests.support import asarray

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


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
    params = {"body": asarray([1.0, -0.0, jnp.inf]), "head": jnp.ones(3)}
    grads = {"body": asarray([jnp.nan, 1.0, jnp.inf]), "head": jnp.ones(3)}
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


def test_a_bare_array_that_is_not_chosen():
    """The others' part of it is no tree at all, and asks for no params."""
    p = jnp.ones((3, 2))
    held = fnn.optim.masked(fnn.optim.add_decayed_weights(0.1), lambda p: False)
    assert (held.update(p, held.init(p), p)[0] == 1).all()
    both = {"a": fnn.optim.sgd(0.5), "b": fnn.optim.add_decayed_weights(0.1)}
    tx = fnn.optim.partition(both, lambda p: "a")
    assert (tx.update(p, tx.init(p), p)[0] == -0.5).all()


o, sgd = fnn.optim, fnn.optim.sgd(0.1)


WRONG = {
    "no transform to mask": (lambda: o.masked(o.sgd, True), errors.OptionError),
    "no such path": (lambda: o.set_to_zero("a*").init({"b": jnp.ones(2)}), errors.ParamsError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name):
    call, kind = WRONG[name]
    with pytest.raises(kind):
        call()
