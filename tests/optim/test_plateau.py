"""The plateau against its loop, PyTorch and optax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn.optim import reduce_on_plateau
from fnn.testing import check_optimizer
from tests.optim import oracles_plateau
from tests.support import asarray


def draws(**options):
    return st.fixed_dictionaries(options)


N = 60


PLATEAU = dict(
    factor=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    patience=st.integers(1, 6),
    rtol=st.sampled_from([0.0, 1e-4, 0.1]),
    atol=st.sampled_from([0.0, 0.05]),
    cooldown=st.integers(0, 5),
    accumulation_size=st.integers(1, 4),
    min_scale=st.sampled_from([0.0, 1e-3, 0.3]),
)


@jax.jit
def plateau_scales(options, losses):
    tx = reduce_on_plateau(**options)
    g = jnp.ones(())

    def step(opt_state, loss):
        updates, opt_state = tx.update(g, opt_state, value=loss)
        return opt_state, updates

    return jax.lax.scan(step, tx.init(g), losses)[1]


def draw_losses(rng):
    """Falling, flat, noisy, below zero, and at times not finite."""
    losses = np.cumsum(rng.normal(rng.choice([-0.1, 0.0]), rng.choice([0.01, 0.3]), N))
    if rng.random() < 0.5:
        losses = np.abs(losses)
    start, end = sorted(rng.integers(0, N, 2))
    losses[start:end] = losses[start]
    if rng.random() < 0.3:
        losses[rng.integers(0, N, 3)] = rng.choice([np.nan, np.inf], 3)
    return losses


@given(options=draws(**PLATEAU), seed=st.integers(0, 2**32 - 1))
def test_plateau_is_the_loop(options, seed):
    losses = draw_losses(np.random.default_rng(seed))
    with jax.enable_x64(True):
        arrays = {k: asarray(v) for k, v in options.items()}
        got = np.asarray(plateau_scales(arrays, asarray(losses)))
    np.testing.assert_allclose(
        got, oracles_plateau.reduce_on_plateau(losses, **options), rtol=1e-12
    )


@pytest.mark.parametrize("cooldown", [0, 3])
@pytest.mark.parametrize("patience", [1, 4])
def test_plateau_equals_pytorch_and_optax(cooldown, patience):
    torch, optax = pytest.importorskip("torch"), pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    losses = 2 + np.cumsum(rng.normal(-0.01, 0.1, N))
    assert (losses > 0).all()
    options = dict(factor=0.5, patience=patience, cooldown=cooldown, rtol=1e-3, min_scale=0.01)
    tx = optax.contrib.reduce_on_plateau(**options)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, cooldown=cooldown, threshold=1e-3,
        min_lr=0.01, eps=0.0,
    )  # fmt: skip
    theirs, torchs = [], []
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        g = jnp.ones((), jnp.float64)
        opt_state, update = tx.init(g), jax.jit(tx.update)
        for loss in losses:
            scheduler.step(loss)
            torchs.append(optimizer.param_groups[0]["lr"])
            updates, opt_state = update(g, opt_state, value=jnp.float64(loss))
            theirs.append(float(updates))
        arrays = {k: asarray(v) for k, v in {**options, "atol": 0.0}.items()}
        ours = np.asarray(plateau_scales({**arrays, "accumulation_size": asarray(1)},
                                         asarray(losses)))  # fmt: skip
    assert ours[-1] < 0.3
    np.testing.assert_allclose(ours, torchs, rtol=1e-12)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def after(tx, losses, params):
    def step(opt_state, loss):
        return tx.update(params, opt_state, value=loss)[1], None

    with jax.numpy_dtype_promotion("standard"):
        return jax.lax.scan(step, tx.init(params), asarray(losses, jnp.float32))[0]


def test_plateau_of_negative_losses_where_optax_takes_worse_for_better():
    """optax's threshold (1 - rtol) best lies above a best below zero: it never sees a plateau."""
    optax = pytest.importorskip("optax")
    losses = [-10.0 + 0.01 * n for n in range(20)]  # ever worse
    options = dict(factor=0.5, patience=5, rtol=0.01)
    theirs = after(optax.contrib.reduce_on_plateau(**options), losses, jnp.ones(1))
    ours = after(reduce_on_plateau(**options), losses, jnp.ones(1))
    assert theirs.scale == 1 and theirs.best_value > -10
    assert ours.scale < 1 and ours.best_value == -10


def test_plateau_of_bfloat16_params_where_optax_rounds_the_loss():
    """A loss that falls by 5e-4 a step is a plateau in bfloat16, where all of these are 1."""
    optax = pytest.importorskip("optax")
    losses = [1 - 0.0005 * n for n in range(4)]
    params = jnp.ones(1, jnp.bfloat16)
    options = dict(factor=0.5, patience=3)
    theirs = after(optax.contrib.reduce_on_plateau(**options), losses, params)
    ours = after(reduce_on_plateau(**options), losses, params)
    assert theirs.scale == 0.5
    assert ours.scale == 1 and ours.plateau_count == 0 and ours.scale.dtype == "float32"


def test_plateau_asks_for_a_scalar_value():
    tx, g = reduce_on_plateau(), jnp.ones(2)
    opt_state = tx.init(g)
    with pytest.raises(fnn.FnnError, match="reduce_on_plateau: expected the loss as value="):
        tx.update(g, opt_state)
    with pytest.raises(fnn.FnnError, match="a scalar value"):
        tx.update(g, opt_state, value=jnp.ones(2))
    with pytest.raises(fnn.FnnError, match="PlateauState"):
        tx.update(g, (), value=1.0)


def test_contract():
    check_optimizer(reduce_on_plateau(patience=1))


def test_plateau_inside_chains_and_derivatives():
    """In float16, behind the learning rate; the derivative by the factor is that of factor^2.

    optax's chain hands extra arguments to transforms of its own type alone.
    """
    optax = pytest.importorskip("optax")
    g = jnp.ones(2, jnp.float16)

    def last(factor, chain, kind):
        tx = chain(fnn.optim.sgd(1.0), kind(*reduce_on_plateau(factor, patience=1)))
        opt_state = tx.init(g)
        for _ in range(3):  # the first is the best
            updates, opt_state = tx.update(g, opt_state, g, value=jnp.float32(1))
        assert updates.dtype == "float16"
        return updates[0].astype(jnp.float32)

    for chain, kind in (
        (fnn.optim.chain, fnn.optim.Transform),
        (optax.chain, optax.GradientTransformationExtraArgs),
    ):
        value, slope = jax.jit(jax.value_and_grad(partial(last, chain=chain, kind=kind)))(0.5)
        assert value == -0.25 and slope == -1
