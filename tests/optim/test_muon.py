"""Muon against its paper, PyTorch and optax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors, optim
from tests.optim import rows_muon
from tests.optim.contract import contract
from tests.optim.rows import run
from tests.optim.rows_muon import ROWS
from tests.optim.support import seeds
from tests.support import asarray, refused

test_formula, test_optax, test_contract, test_missing_params = contract(ROWS)


def test_five_steps_take_singular_values_near_one():
    """What `orthogonalize` says of its default coefficients."""
    s = np.geomspace(1e-2, 1, 10_000)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert 0.68 < s.min() and s.max() < 1.21


@given(seed=seeds, tall=st.booleans(), size=st.sampled_from([1e-20, 1.0, 1e20]))
def test_orthogonalize_converges_to_the_polar_factor(seed, tall, size):
    """X = U S V^T -> U V^T, at any size, for a batch; singular values from 1/10 to 1."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(2, n, 3)))[0] for n in (5, 3))
    x = (u * rng.uniform(0.1, 1, (2, 1, 3))) @ np.swapaxes(v, 1, 2)
    want = u @ np.swapaxes(v, 1, 2)
    x, want = (np.swapaxes(a, 1, 2) if tall else a for a in (x, want))
    got = polar(np.float32(size * x))
    np.testing.assert_allclose(got, want, atol=1e-5)


polar = jax.jit(lambda x: optim.orthogonalize(x, 15, (2.0, -1.5, 0.5)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_orthogonalize_keeps_the_dtype_and_zero(dtype):
    x = jnp.zeros((2, 3), dtype)

    @jax.jit
    def both(x):
        total = lambda x: jnp.sum(optim.orthogonalize(x)).astype("float32")  # noqa: E731
        return optim.orthogonalize(x), jax.grad(total)(x)

    u, turned = both(x)
    assert u.dtype == dtype and not u.any()
    assert np.isfinite(np.float32(turned)).all()


def test_each_step_may_have_its_coefficients():
    """Of the diagonal, each entry goes through the polynomials by itself."""
    table = np.array([[4.0, -6.0, 2.5], [3.0, -3.0, 1.0]])
    s = np.array([0.6, 0.8])
    want = s
    for a, b, c in table:
        want = a * want + b * want**3 + c * want**5
    got = optim.orthogonalize(jnp.diag(asarray(s, "float32")), 2, table.tolist())
    np.testing.assert_allclose(np.diag(got), want, rtol=1e-5)


def test_muon_is_pytorchs_to_bfloat16():
    """PyTorch iterates in bfloat16, on kernels (out, in)."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    rng = np.random.default_rng(0)
    grads, w = np.float32(rng.normal(size=(5, 4, 6))), np.float32(rng.normal(size=(4, 6)))
    theirs = torch.nn.Parameter(torch.tensor(w.T.copy()))
    options = dict(lr=0.1, momentum=0.9, weight_decay=0.1)
    stepper = torch.optim.Muon([theirs], **options)
    for g in grads:
        theirs.grad = torch.tensor(g.T.copy())
        stepper.step()
    tx = optim.muon(0.1, beta=0.9, weight_decay=0.1)
    moves = jax.jit(partial(run, tx))({"w": asarray(grads)}, {"w": asarray(w)})["w"]
    moved = np.asarray(moves).sum(0)
    np.testing.assert_allclose(w + moved, theirs.detach().numpy().T, atol=0.03)


def test_muon_takes_the_matrices_it_is_told():
    """An embedding by Adam, a convolution's bank of filters by Muon, as one matrix."""
    rng = np.random.default_rng(0)
    embedding, kernel = rng.normal(size=(3, 2)), rng.normal(size=(2, 2, 3, 40))
    p = jax.tree.map(jnp.float32, {"e": {"embedding": embedding}, "conv": {"kernel": kernel}})
    tx = optim.muon(0.1, matrices="*/kernel")
    updates, _ = tx.update(p, tx.init(p), p)
    np.testing.assert_allclose(np.abs(updates["e"]["embedding"]), 0.1, rtol=1e-5)
    (want,) = rows_muon.muon_matrix([kernel.reshape(12, 40)], kernel.reshape(12, 40), 0.1, 0.95)
    np.testing.assert_allclose(updates["conv"]["kernel"].reshape(12, 40), want, atol=1e-4)


def test_consistent_rms_is_that_of_the_update():
    """Orthogonal (m, n) matrices have entries of mean square 1 / max(m, n)."""
    tx = optim.scale_by_shape(consistent_rms=0.2)
    q = asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)))[0])
    np.testing.assert_allclose(np.sqrt(np.mean(tx.update(q, ())[0] ** 2)), 0.2, rtol=1e-5)


def test_optax_difference_muon_of_small_gradients():
    """optax adds eps = 1e-8 to the norm: at gradients of 1e-12, next to nothing is left."""
    optax = pytest.importorskip("optax")
    g = {"w": 1e-12 * asarray(np.random.default_rng(0).normal(size=(3, 3)), "float32")}
    sizes = []
    for tx in (optim.muon(1.0), optax.contrib.muon(1.0)):
        with jax.numpy_dtype_promotion("standard"):
            updates = jax.jit(lambda g, tx=tx: tx.update(g, tx.init(g), g)[0])(g)
        sizes.append(np.linalg.norm(updates["w"]))
    assert sizes[0] > 1.0 and sizes[1] < 0.5


def test_optax_difference_muon_with_nesterov():
    """optax divides the momentum by 1 - beta^{t+1} and the gradient by 1 - beta^t before they are
    added: another direction than G + beta B."""
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    grads, w = rng.normal(size=(3, 4, 4)), rng.normal(size=(4, 4))
    want = rows_muon.muon_matrix(list(grads), w, 1.0, 0.95)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours, theirs = (
            np.asarray(run(tx, {"w": asarray(grads)}, {"w": asarray(w)})["w"])
            for tx in (optim.muon(1.0), optax.contrib.muon(1.0, eps=1e-30))
        )
    np.testing.assert_allclose(ours, want, atol=1e-12)
    assert np.abs(theirs - want).max() > 0.01


def total(p):
    return jnp.sum(p["w"])


WRONG = {
    "muon beta": (lambda: optim.muon(0.1, beta=1.0), errors.OptionError),
    "muon steps": (lambda: optim.muon(0.1, steps=0), errors.OptionError),
    "muon mask": (lambda: optim.muon(0.1, matrices=3), errors.OptionError),
    "muon rate": (lambda: optim.muon("fast"), errors.OptionError),
    "muon rms": (lambda: optim.scale_by_shape(-1.0), errors.OptionError),
    "orthogonalize a vector": (lambda: optim.orthogonalize(jnp.ones(3)), errors.ShapeError),
    "orthogonalize ints": (lambda: optim.orthogonalize(jnp.ones((2, 2), int)), errors.DtypeError),
    "orthogonalize steps": (lambda: optim.orthogonalize(jnp.eye(2), 0), errors.OptionError),
    "coefficients": (lambda: optim.orthogonalize(jnp.eye(2), 5, (1.0, 2.0)), errors.ShapeError),
    "muon of a vector": (lambda: optim.scale_by_muon().init(jnp.ones(3)), errors.ShapeError),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_by_fnns_errors(name):
    refused(*WRONG[name])
