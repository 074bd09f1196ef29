"""Wrong inputs, made by mutation: each gives fnn's own error, the same under jit.

A row of the table is a builder, its legal options and a legal input. Everything else is derived:
every axis, rank, dtype, option, name and key is spoiled in turn.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.testing import mutations
from tests.core.table import ELEMENTWISE, NOISY, TABLE, build, placed
from tests.support import (
    BAD_OPTIONS,
    NOT_ARRAYS,
    assert_teaches,
    ones,
    outcome,
    same_under_jit,
    shape_mutations,
)


@pytest.mark.parametrize("name", TABLE)
def test_shapes_and_ranks(name):
    net, params, state, x = placed(name)

    def call(x):
        return net(params, x, state=state)

    refused = 0
    for shape in shape_mutations(x.shape):
        error = same_under_jit(call, ones(shape))
        if error is not None:
            refused += 1
            assert_teaches(error, "inner/layer")
            assert str(shape) in str(error)
        elif params:  # it ran, so it must be what init would declare for this input
            declared, _ = net.specs(shape)
            assert jax.tree.map(lambda p: p.stack + p.shape, declared) == jax.tree.map(
                jnp.shape, params
            )
    assert refused or name in ELEMENTWISE


@pytest.mark.parametrize("name", TABLE)
def test_dtypes(name):
    net, params, state, x = placed(name)
    for dtype in (jnp.int32, jnp.uint8, bool, jnp.complex64, jnp.bfloat16, jnp.float16):
        error = same_under_jit(lambda x: net(params, x, state=state), x.astype(dtype))
        narrow = dtype in (jnp.bfloat16, jnp.float16)
        if name == "flatten" or narrow and not params:
            assert error is None
            continue
        assert isinstance(error, errors.DtypeError), dtype
        assert_teaches(error, "inner/layer")
        assert "astype" in error.mend and jnp.dtype(dtype).name in error.got


@pytest.mark.parametrize("name", TABLE)
def test_things_that_are_no_arrays(name):
    net, params, state, x = placed(name)
    for wrong in NOT_ARRAYS:
        error = outcome(lambda w: net(params, w, state=state), wrong)
        assert error is not None, wrong
        assert_teaches(error, "inner/layer")
    for count in (0, 2):
        own = params["inner"]["layer"] if params else {}
        error = outcome(build(name)[0], own, *[x] * count)
        assert isinstance(error, errors.InputError) and f"got {count}" in str(error)


@pytest.mark.parametrize("name", TABLE)
def test_names_in_params_and_state(name):
    net, params, state, x = placed(name)
    cases = [(wrong, state) for _, wrong in mutations(params)]
    cases += [(params, wrong) for _, wrong in mutations(state)]
    for wrong in cases:
        error = same_under_jit(lambda p, s: net.apply(p, s, x)[0], *wrong)
        assert error is not None
        assert_teaches(error, error.path or "serial")
        assert "net.init" in error.mend or "astype" in error.mend or "state=state" in error.mend
    for wrong in (None, (params, state), [], 3):
        error = outcome(lambda p: net(p, x, state=state), wrong)
        assert isinstance(error, errors.ParamsError)


@pytest.mark.parametrize("name", TABLE)
def test_keys(name):
    net, params, state, x = placed(name)
    for key in (None, 0, "key", jnp.ones(2), jax.random.split(jax.random.key(0))):
        error = outcome(lambda k: net.apply(params, state, x, key=k, train=True), key)
        if key is None and name not in NOISY:
            assert error is None
            continue
        assert isinstance(error, errors.RandomKeyError)
        assert_teaches(error, "inner/layer" if key is None else "serial")


@pytest.mark.parametrize("name", TABLE)
def test_options(name):
    """A bad option is refused by the builder, by specs, or is not bad: no other error, ever."""
    _, options, shape = TABLE[name]
    refused = 0
    for option in options:
        for bad in BAD_OPTIONS:

            def use(option=option, bad=bad):
                layer, _ = build(name, **{option: bad})
                small = isinstance(bad, int) and bad == 10**6
                if not small:  # a million features are legal, and not for a test
                    params, state = layer.init(jax.random.key(0), shape)
                    layer(params, jnp.ones(shape), state=state)

            error = outcome(use)
            if error is not None:
                refused += 1
                kind = TABLE[name][0].__name__
                assert_teaches(error, kind)
    assert refused >= 8 * len(options)


def test_unhashable_and_misspelt_options_are_pythons_own():
    with pytest.raises(TypeError, match="unexpected keyword"):
        fnn.dense(3, features_=4)


@pytest.mark.parametrize("loss", [fnn.losses.softmax_cross_entropy], ids=lambda f: f.__name__)
def test_losses(loss):
    logits, labels = jnp.ones((4, 3)), jnp.zeros(4, int)
    wrong = [(logits, shape) for shape in shape_mutations((4,)) if shape != (4,)]
    for _, shape in wrong:
        for bad in (jnp.zeros(shape, int), jnp.zeros((*shape, 3)), jnp.zeros(shape)):
            error = same_under_jit(loss, logits, bad)
            assert_teaches(error, loss.__name__)
    for dtype in (bool, jnp.complex64):
        assert isinstance(same_under_jit(loss, logits, labels.astype(dtype)), errors.DtypeError)
    assert isinstance(same_under_jit(loss, labels, labels), errors.DtypeError)
    for bad in (None, "text", 3):
        assert isinstance(outcome(loss, logits, bad), errors.InputError)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(fnn.optim.sgd, momentum=0.5),
        fnn.optim.adam,
        fnn.optim.scale_by_learning_rate,
    ],
    ids=["sgd", "adam", "scale"],
)
def test_optimizers(make):
    for bad in (None, "text", jnp.ones(2), True):
        assert isinstance(outcome(make, bad), errors.OptionError)
    tx = make(0.1)
    params = {"a": jnp.ones(2), "b": {"c": jnp.ones(3)}}
    state = tx.init(params)
    for _, wrong in mutations(params):
        kinds = (errors.ParamsError, errors.ShapeError, errors.DtypeError)
        assert isinstance(outcome(fnn.optim.apply_updates, params, wrong), kinds)
        if make is not fnn.optim.scale_by_learning_rate:  # which has nothing to compare with
            assert isinstance(outcome(tx.update, wrong, state), kinds)


def test_combined_over_thirty_thousand_characters_are_not_printed():
    """A message shows shapes, never values."""
    error = outcome(fnn.dense(3), {"kernel": np.ones((100, 100)), "bias": 3}, jnp.ones((2, 5)))
    assert len(str(error)) < 300
