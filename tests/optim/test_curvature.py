"""What the table of optimizers cannot say of Muon, schedule-free, L-BFGS, Prodigy, SOAP, Sophia."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors, optim
from fnn.optim.soap import inverse_fourth_root
from fnn.optim.sophia import hutchinson
from fnn.testing import optimizers as kit
from tests.optim import oracles_curvature as oracles
from tests.optim.rows import run

seeds = st.integers(0, 2**32 - 1)


def minimized(tx, value_fn, x, steps):
    """Params, state and all values of a run down value_fn, as one scan."""

    def step(carry, _):
        x, opt_state = carry
        value, grad = jax.value_and_grad(value_fn)(x)
        extra = dict(value=value, grad=grad, value_fn=value_fn)
        updates, opt_state = tx.update(grad, opt_state, x, **extra)
        return (optim.apply_updates(x, updates), opt_state), value

    (x, opt_state), values = jax.lax.scan(step, (x, tx.init(x)), None, steps)
    return x, opt_state, values


def check_runs(tx):
    """The part of check_optimizer that needs value_fn, down one small valley."""
    valley = kit.Valley(*({"w": jnp.array(a)} for a in ([1.0, 2.0], [0.3, 0.0], [3.0, 0.0])))
    kit.check_protocol(tx)
    kit.check_still(tx)
    kit.check_runs(tx, valley, jax.jit(partial(kit._run, tx)))
    kit.check_lanes(tx, valley, jax.jit(partial(kit._run, tx)))
    kit.check_host(tx, valley)
    kit.check_finite_derivatives(tx, valley, True)


# --- Muon


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
    got = optim.orthogonalize(jnp.diag(jnp.asarray(s, "float32")), 2, table.tolist())
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
    moves = jax.jit(partial(run, tx))({"w": jnp.asarray(grads)}, {"w": jnp.asarray(w)})["w"]
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
    (want,) = oracles.muon_matrix([kernel.reshape(12, 40)], kernel.reshape(12, 40), 0.1, 0.95)
    np.testing.assert_allclose(updates["conv"]["kernel"].reshape(12, 40), want, atol=1e-4)


def test_consistent_rms_is_that_of_the_update():
    """Orthogonal (m, n) matrices have entries of mean square 1 / max(m, n)."""
    tx = optim.scale_by_shape(consistent_rms=0.2)
    q = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)))[0])
    np.testing.assert_allclose(np.sqrt(np.mean(tx.update(q, ())[0] ** 2)), 0.2, rtol=1e-5)


def test_optax_difference_muon_of_small_gradients():
    """optax adds eps = 1e-8 to the norm: at gradients of 1e-12, next to nothing is left."""
    optax = pytest.importorskip("optax")
    g = {"w": 1e-12 * jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), "float32")}
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
    want = oracles.muon_matrix(list(grads), w, 1.0, 0.95)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours, theirs = (
            np.asarray(run(tx, {"w": jnp.asarray(grads)}, {"w": jnp.asarray(w)})["w"])
            for tx in (optim.muon(1.0), optax.contrib.muon(1.0, eps=1e-30))
        )
    np.testing.assert_allclose(ours, want, atol=1e-12)
    assert np.abs(theirs - want).max() > 0.01


# --- schedule-free


def test_schedule_free_reads_the_schedule_from_zero():
    """optax weighs the average by schedule(1) at the step that its base takes with schedule(0)."""
    optax = pytest.importorskip("optax")

    def rising(count):
        return 0.1 * (count + 1)

    gs, p = [1.0, -2.0, 0.5, 1.0], 0.3
    want = oracles.schedule_free_sgd(gs, p, rising)
    ours = optim.schedule_free(optim.sgd(rising), rising)
    theirs = optax.contrib.schedule_free(optax.sgd(rising), rising)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        got, other = (np.asarray(run(tx, jnp.array(gs), jnp.array(p))) for tx in (ours, theirs))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert np.abs(other - want).max() > 1e-3


def test_schedule_free_warms_up():
    """gamma_t = gamma min(1, t / T), and what a rate of 0 does not move does not count."""
    gs, p = [1.0, -2.0, 0.5, 1.0, 1.0], 0.3
    want = oracles.schedule_free_adamw(gs, p, lambda count: 0.1 * min(1, (count + 1) / 3))
    with jax.enable_x64(True):
        tx = optim.schedule_free_adamw(0.1, warmup_steps=3)
        np.testing.assert_allclose(run(tx, jnp.array(gs), jnp.array(p)), want, rtol=1e-10)
        late = optim.schedule_free_sgd(lambda count: jnp.where(count < 2, 0.0, 0.1))
        got = run(late, jnp.array(gs), jnp.array(p))
    np.testing.assert_allclose(got[2:], oracles.schedule_free_sgd(gs[2:], p, 0.1), rtol=1e-10)
    assert not got[:2].any()


def test_optax_difference_schedule_free_without_interpolation():
    """b1 = 0 is plain SGD with an average beside it; optax divides by b1."""
    optax = pytest.importorskip("optax")
    gs, p = jnp.array([1.0, -2.0, 0.5]), jnp.array(0.3)
    got = run(optim.schedule_free_sgd(0.1, b1=0.0), gs, p)
    np.testing.assert_allclose(got, -0.1 * gs, rtol=1e-5)
    with jax.numpy_dtype_promotion("standard"):
        assert not np.isfinite(run(optax.contrib.schedule_free_sgd(0.1, b1=0.0), gs, p)).all()


def test_optax_difference_schedule_free_averages_in_bfloat16():
    """The average of all z by hand; optax recovers it from params that bfloat16 has rounded."""
    optax = pytest.importorskip("optax")
    p = jnp.zeros(1, "bfloat16")
    gs = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 1)) - 0.05, "bfloat16")
    zs = -0.01 * np.cumsum(np.float64(gs), 0)
    want = zs.mean(0)

    def averaged(tx, read):
        def step(carry, g):
            params, opt_state = carry
            updates, opt_state = tx.update(g, opt_state, params)
            return ((params + updates).astype("bfloat16"), opt_state), None

        (params, opt_state), _ = jax.jit(partial(jax.lax.scan, step))((p, tx.init(p)), gs)
        return np.float64(read(opt_state, params))

    got = averaged(optim.schedule_free_sgd(0.01), optim.schedule_free_eval_params)
    np.testing.assert_allclose(got, want, rtol=0.01)
    with jax.numpy_dtype_promotion("standard"):
        theirs = averaged(
            optax.contrib.schedule_free_sgd(0.01), optax.contrib.schedule_free_eval_params
        )
    assert np.abs(theirs - want).max() > 0.05 * np.abs(want).max()


def test_schedule_free_params_are_found_in_any_state():
    p = {"w": jnp.ones(2, "bfloat16")}
    tx = optim.chain(optim.trace(0.0), optim.schedule_free_sgd(0.5))
    updates, opt_state = tx.update(p, tx.init(p), p)
    x = optim.schedule_free_eval_params({"opt": opt_state}, p)["w"]
    assert x.dtype == "bfloat16"
    np.testing.assert_allclose(np.float32(x), 0.5)
    for wrong in ((), (opt_state, opt_state)):
        with pytest.raises(errors.ParamsError, match="one state of schedule_free"):
            optim.schedule_free_eval_params(wrong, p)


# --- L-BFGS


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("float64", 1e-10)])
def test_lbfgs_finds_the_bottom_of_rosenbrocks_valley(dtype, error):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray([-1.2, 1.0], dtype)
        x, _, values = jax.jit(lambda x: minimized(optim.lbfgs(), rosenbrock, x, 50))(x)
        np.testing.assert_allclose(x, 1.0, atol=error)
        assert (np.diff(values) <= 1e-6 * np.abs(values[:-1]) + 1e-7).all()


def test_lbfgs_solves_a_quadratic():
    """A tree of 30 unknowns, eigenvalues from 1 to 1000, to the solution of A x = b."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    a, b = (q * np.geomspace(1, 1000, 30)) @ q.T, rng.normal(size=30)

    def value_fn(x):
        x = jnp.concatenate([x["u"].ravel(), x["v"]])
        return x @ (jnp.asarray(a) @ x) / 2 - jnp.asarray(b) @ x

    with jax.enable_x64(True):
        x = {"u": jnp.zeros((4, 5)), "v": jnp.zeros(10)}
        x, *_ = jax.jit(lambda x: minimized(optim.lbfgs(memory_size=20), value_fn, x, 250))(x)
        got = np.concatenate([np.ravel(x["u"]), x["v"]])
    np.testing.assert_allclose(got, np.linalg.solve(a, b), atol=1e-8)


def test_lbfgs_directions_are_optaxs_where_curvature_is_positive():
    optax = pytest.importorskip("optax")
    w = jnp.array([1.0, 3.0, 10.0])

    def followed(tx):
        def step(carry, _):
            x, opt_state = carry
            u, opt_state = tx.update(w * x, opt_state, x)
            return (x - 0.5 * u, opt_state), u

        x = jnp.ones(3, "float64")
        return jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, 8)[1])(x)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ours, theirs = (f(memory_size=3) for f in (optim.scale_by_lbfgs, optax.scale_by_lbfgs))
        np.testing.assert_allclose(followed(ours), followed(theirs), rtol=1e-9)


def test_optax_difference_lbfgs_in_negative_curvature():
    """f = -x^2 / 2 + x: the pair (s, y = -s) gives optax a negative H, and -u leads uphill."""
    optax = pytest.importorskip("optax")
    slopes = []
    for tx in (optim.scale_by_lbfgs(), optax.scale_by_lbfgs()):

        def slope(x, tx=tx):
            _, opt_state = tx.update(1 - x, tx.init(x), x)
            x = x - 0.5
            return jnp.vdot(1 - x, -tx.update(1 - x, opt_state, x)[0])

        with jax.numpy_dtype_promotion("standard"):
            slopes.append(float(jax.jit(slope)(jnp.zeros(1))))
    assert slopes[0] < 0 < slopes[1]


@given(seed=seeds, c1=st.sampled_from([1e-4, 0.3]))
def test_the_step_holds_the_wolfe_conditions(seed, c1):
    """f(t) = sum of a quartic and waves along a line, in float64 NumPy."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.uniform(0.1, 3, 4), rng.normal(size=4), rng.normal(size=4)
    x, size = rng.normal(size=4), 10.0 ** rng.uniform(-2, 2)

    def value(x):
        return np.sum(a * x**4 / 4 + b * x) + np.sum(c * np.sin(3 * x))

    def grad(x):
        return a * x**3 + b + 3 * c * np.cos(3 * x)

    u = -size * grad(x)
    with jax.enable_x64(True):
        t = float(searched(*map(jnp.asarray, (c1, a, b, c, x, u))))
    assert value(x + t * u) <= value(x) + c1 * t * grad(x) @ u + 1e-10 * abs(value(x))
    assert abs(grad(x + t * u) @ u) <= 0.9 * abs(grad(x) @ u) * (1 + 1e-9)


@jax.jit
def searched(c1, a, b, c, x, u):
    tx = optim.scale_by_wolfe_linesearch(max_steps=60, c1=c1)

    def value_fn(x):
        return jnp.sum(a * x**4 / 4 + b * x) + jnp.sum(c * jnp.sin(3 * x))

    return tx.update(u, tx.init(x), x, value_fn=value_fn)[1].learning_rate


def test_a_search_that_leaves_the_domain_comes_back():
    """f = x - log x is NaN below 0; from x = 0.1 downhill is up, but a step of 100 the wrong way
    along a curve that bends back is cut to one inside."""
    tx = optim.scale_by_wolfe_linesearch()

    def value_fn(x):
        return jnp.sum(x - jnp.log(x))

    x = jnp.array([3.0])
    u, opt_state = tx.update(jnp.array([-100.0]), tx.init(x), x, value_fn=value_fn)
    assert 0 < float((x + u)[0]) < 3.0
    assert opt_state.learning_rate > 0


def test_a_search_uphill_stays():
    """No step along an ascent lowers f: t = 0, and L-BFGS forgets its pairs."""
    tx = optim.scale_by_wolfe_linesearch()
    x = jnp.ones(2)
    u, opt_state = tx.update(x, tx.init(x), x, value_fn=lambda x: jnp.sum(x**2))
    assert not u.any() and opt_state.learning_rate == 0
    tx = optim.scale_by_lbfgs()
    _, state = tx.update(2 * x, tx.init(x), x)
    _, state = tx.update(x, state, x / 2)
    assert state.weights_memory[-1] > 0
    u, state = tx.update(x, state, x / 2)
    assert not state.weights_memory.any()
    np.testing.assert_allclose(u, x / np.sqrt(2), rtol=1e-6)  # min(1, 1 / |g|) of the gradient


@pytest.mark.parametrize(("size", "length"), [(0.1, 0.1), (1e30, 1.0), (0.0, 0.0)])
def test_the_first_direction_of_lbfgs_is_no_longer_than_one(size, length):
    tx, g = optim.scale_by_lbfgs(), size * jnp.array([0.6, 0.8])
    u, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_allclose(u, length * np.array([0.6, 0.8]), rtol=1e-6)


def test_lbfgs_side_by_side_and_its_meta_gradient():
    """Runs from four starts in one vmap; the derivative of where they end, by the target."""

    def end(start, target):
        def value_fn(x):
            return jnp.sum(jnp.array([1.0, 5.0]) * (x - target) ** 2)

        return minimized(optim.lbfgs(memory_size=3), value_fn, start, 4)[0]

    with jax.enable_x64(True):
        starts = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
        target = jnp.array([0.3, -0.2])
        ends = jax.jit(jax.vmap(end, (0, None)))(starts, target)
        alone = jax.jit(end)
        for start, got in zip(starts, ends, strict=True):
            np.testing.assert_allclose(got, alone(start, target), rtol=1e-9)
        jacobian = jax.jit(jax.jacrev(end, 1))(starts[0], target)
        h = 1e-6
        for i, e in enumerate(np.eye(2)):
            up, down = (alone(starts[0], target + s * h * e) for s in (1, -1))
            np.testing.assert_allclose(jacobian[:, i], (up - down) / (2 * h), rtol=1e-4, atol=1e-7)


def test_lbfgs_holds_the_contract_of_optimizers():
    """With its line search, reverse mode included; the row of its directions has the rest."""
    check_runs(optim.lbfgs(memory_size=2))


def test_lbfgs_runs_in_optaxs_chain():
    """optax gives extra arguments to a type of its own alone."""
    optax = pytest.importorskip("optax")
    lbfgs = optax.GradientTransformationExtraArgs(*optim.lbfgs())
    tx = optax.chain(optax.identity(), lbfgs)
    x, opt_state = jnp.array([1.0, 2.0]), tx.init(jnp.zeros(2))
    for _ in range(3):
        f = lambda x: jnp.sum(x**2)  # noqa: E731
        u, opt_state = tx.update(jax.grad(f)(x), opt_state, x, value_fn=f)
        x = x + u
    np.testing.assert_allclose(x, 0, atol=1e-5)


# --- Prodigy


def test_prodigy_finds_the_distance():
    """f = |x - 1|_1 from 0 in ten dimensions: d comes close to |x_0 - x*|_inf, never above it."""
    tx = optim.prodigy()
    target = jnp.ones(10)
    f = lambda x: jnp.sum(jnp.abs(x - target))  # noqa: E731
    x, opt_state, _ = jax.jit(lambda x: minimized(tx, f, x, 400))(jnp.zeros(10))
    assert 0.3 < opt_state[0].estim_lr <= 1.0
    np.testing.assert_allclose(x, 1.0, atol=0.3)


# --- Shampoo and SOAP


@given(seed=seeds, equal=st.booleans())
def test_inverse_fourth_roots_and_their_derivatives(seed, equal):
    """X^4 A = I; first and second derivatives along A + t E, at equal eigenvalues too, against the
    eigenvalues of A + t E in NumPy."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    a = (q * (np.full(3, 2.0) if equal else rng.uniform(0.5, 4, 3))) @ q.T
    e, c = rng.normal(size=(2, 3, 3))
    e, c = e + e.T, c + c.T

    def along(t):
        values, vectors = np.linalg.eigh(a + t * e)
        return np.sum(c * ((vectors * values**-0.25) @ vectors.T))

    with jax.enable_x64(True):
        x, slope, bend = jax.device_get(derivatives_of_roots(*map(jnp.asarray, (a, e, c))))
    np.testing.assert_allclose(x @ x @ x @ x @ a, np.eye(3), atol=1e-12)
    h = 1e-4
    up, down = along(h), along(-h)
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bend, (up - 2 * along(0) + down) / h**2, rtol=1e-4, atol=1e-4)


@jax.jit
def derivatives_of_roots(a, e, c):
    """X at A, and the derivative of <c, X> along E: by jvp of it, and by jvp of grad."""

    def f(a):
        return jnp.sum(c * inverse_fourth_root(a, jnp.float64(1e-12)))

    slope, bend = jax.jvp(lambda a: jnp.sum(jax.grad(f)(a) * e), (a,), (e,))
    return inverse_fourth_root(a, jnp.float64(1e-12)), slope, bend


def test_shampoo_of_diagonal_matrices_is_adagrad():
    """L = R = diag(eps + sum g^2), so L^{-1/4} G R^{-1/4} = g / sqrt(eps + sum g^2)."""
    g = np.random.default_rng(0).normal(size=(5, 4))
    grads = np.stack([np.diag(row) for row in g])
    with jax.enable_x64(True):
        got = run(optim.scale_by_shampoo(), {"w": jnp.asarray(grads)}, {"w": jnp.zeros((4, 4))})
    want = g / np.sqrt(1e-4 + np.cumsum(g**2, 0))
    np.testing.assert_allclose(np.diagonal(got["w"], axis1=1, axis2=2), want, rtol=1e-10)


def test_shampoo_of_huge_gradients_in_float32():
    """Of s u v^T the update is u v^T, though rounding makes eigenvalues negative."""
    g = jnp.full((3, 3), 1e6)
    tx = optim.scale_by_shampoo()
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], 1 / 3, atol=0.03)


def test_shampoo_keeps_roots_for_some_updates():
    g = np.random.default_rng(0).normal(size=(7, 2, 3))
    want = oracles.shampoo(list(g), g[0], 1.0, frequency=3)
    with jax.enable_x64(True):
        tx = optim.shampoo(1.0, precondition_frequency=3)
        got = run(tx, {"w": jnp.asarray(g)}, {"w": jnp.asarray(g[0])})["w"]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", [optim.scale_by_shampoo, optim.scale_by_soap])
def test_a_side_too_long_is_left_alone(build):
    """Of (2, 3) with 2 allowed, only the rows are turned: a permutation of columns passes through,
    and no 3 x 3 matrix is kept. With 1 allowed, both have none, and permutations of rows too."""
    g = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 3)), "float32")
    tx = build(max_precondition_size=2)
    state = jax.eval_shape(tx.init, {"w": g[0]})
    assert {leaf.shape for leaf in jax.tree.leaves(state)} <= {(), (0,), (0, 0), (2, 2), (2, 3)}

    def turn(tx, g):
        return jax.jit(partial(run, tx))({"w": g}, {"w": g[0]})["w"]

    np.testing.assert_allclose(turn(tx, g[..., ::-1]), turn(tx, g)[..., ::-1], rtol=1e-3)
    tx = build(max_precondition_size=1)
    assert {leaf.shape for leaf in jax.tree.leaves(tx.init({"w": g[0]}))} <= {
        (),
        (0,),
        (0, 0),
        (2, 3),
    }
    np.testing.assert_allclose(turn(tx, g[:, ::-1]), turn(tx, g)[:, ::-1], rtol=1e-5)


def test_soap_turns_both_sides():
    """(4, 3): of two rows or columns a basis is a reflection, which is its own transpose."""
    g = np.random.default_rng(0).normal(size=(12, 4, 3))
    want = oracles.soap(list(g), g[0], 1.0, b1=0.9, b2=0.9, frequency=2)
    with jax.enable_x64(True):
        tx = optim.soap(1.0, b1=0.9, b2=0.9, precondition_frequency=2)
        got = jax.jit(partial(run, tx))({"w": jnp.asarray(g)}, {"w": jnp.asarray(g[0])})["w"]
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_soap_finds_the_eigenbasis():
    """Gradients U diag(4, 2, 1) N, N of normal noise: Q_L becomes U."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    grads = (u * [4.0, 2.0, 1.0]) @ rng.normal(size=(400, 3, 3))
    tx = optim.scale_by_soap(b2=0.99)

    @jax.jit
    def last(grads):
        step = lambda state, g: (tx.update(g, state)[1], None)  # noqa: E731
        return jax.lax.scan(step, tx.init(grads[0]), grads)[0]

    basis = np.abs(u.T @ np.asarray(last(jnp.asarray(grads, "float32")).left_basis))
    np.testing.assert_allclose(basis, np.eye(3), atol=0.3)
    state = last(jnp.asarray(grads, "float32"))
    turned = np.asarray(state.left_basis.T @ state.left @ state.left_basis)
    off = turned - np.diag(np.diag(turned))
    assert np.abs(off).max() < 0.02 * np.abs(turned).max()


def test_soap_solves_a_turned_quadratic():
    """|A (W - W*) B|^2 with A and B far from diagonal, conditioned 100 and 100, in 500 updates."""
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(2)]
    a, b = (jnp.asarray((q * np.geomspace(1, 0.1, 8)) @ q.T, "float32") for q in turns)
    best = jnp.asarray(rng.normal(size=(8, 8)), "float32")

    def value_fn(w):
        return jnp.sum((a @ (w - best) @ b) ** 2)

    tx = optim.soap(lambda count: 0.1 * (1 - count.astype("float32") / 500), weight_decay=0.0)
    *_, values = jax.jit(lambda w: minimized(tx, value_fn, w, 500))(jnp.zeros((8, 8)))
    assert values[-1] < 1e-6 * values[0]


# --- Sophia


def test_sophia_is_newtons_method_on_a_diagonal_quadratic():
    """Signs give a diagonal Hessian exactly; with b1 = b2 = 0 and gamma = 1 one step arrives."""
    w, target = jnp.array([1.0, 10.0, 100.0]), jnp.array([0.5, -0.5, 0.1])
    tx = optim.sophia(1.0, b1=0.0, b2=0.0, gamma=1.0, weight_decay=0.0, key=jax.random.key(0))
    f = lambda x: jnp.sum(w * (x - target) ** 2) / 2  # noqa: E731
    np.testing.assert_allclose(minimized(tx, f, jnp.zeros(3), 1)[0], target, rtol=1e-5)


def test_sophias_estimate_is_unbiased():
    """The mean of 20,000 estimates is the diagonal, within five standard errors; drawn anew at
    every refresh."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 4))
    a = a + a.T

    def full(x):
        v = jnp.concatenate([x["u"], x["v"]])
        return v @ (jnp.asarray(a, "float32") @ v) / 2

    x = {"u": jnp.ones(2), "v": jnp.ones(2)}
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.jit(jax.vmap(lambda key: hutchinson(full, x, key)))(keys)
    draws = np.concatenate([draws["u"], draws["v"]], 1)
    error = np.abs(draws.mean(0) - np.diag(a)) / (draws.std(0) / np.sqrt(len(draws)))
    assert error.max() < 5


def test_sophia_draws_anew_at_every_refresh():
    tx = optim.scale_by_sophia(b2=0.0, update_interval=1, key=jax.random.key(0))
    x, hs = jnp.ones(4), []
    state = tx.init(x)
    for _ in range(4):
        _, state = tx.update(x, state, x, value_fn=lambda x: jnp.sum(x) ** 2)
        hs.append(tuple(np.asarray(state.nu)))
    assert len(set(hs)) > 1


def test_sophia_refreshes_at_every_kth_update():
    """The Hessian that is passed is read at updates 1, k + 1, 2k + 1 alone."""
    gs, hs = [1.0] * 7, [2.0, 9.0, 9.0, 4.0, 9.0, 9.0, 8.0]
    it = iter(hs)
    tx = optim.scale_by_sophia(b1=0.0, b2=0.5, gamma=1.0, update_interval=3)
    opt_state, got = tx.init(jnp.zeros(())), []
    for g, h in zip(gs, it, strict=True):
        u, opt_state = tx.update(jnp.float32(g), opt_state, hessian=jnp.float32(h))
        got.append(float(u))
    h1, h2, h3 = 1.0, 2.5, 5.25  # 0.5 h + 0.5 hhat
    want = np.minimum(1, 1 / np.array([h1, h1, h1, h2, h2, h2, h3]))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_optax_difference_sophia_uses_the_newest_hessian():
    """optax divides by the average from before the estimate: zero at first, so a full sign step;
    and it corrects the momentum for its start, which the paper does not."""
    optax = pytest.importorskip("optax")
    p = jnp.array([3.0])
    f = lambda p: 50.0 * jnp.sum(p**2)  # noqa: E731
    options = dict(b1=0.0, b2=0.0, gamma=1.0, weight_decay=0.0)
    ours = optim.sophia(1.0, **options, key=jax.random.key(0))
    theirs = optax.contrib.sophia(1.0, **options)
    g = jax.grad(f)(p)
    with jax.numpy_dtype_promotion("standard"):
        u, _ = ours.update(g / 6, ours.init(p), p, value_fn=f)
        v, _ = theirs.update(g / 6, theirs.init(p), p, obj_fn=f)
    np.testing.assert_allclose(u, [-0.5], rtol=1e-6)  # 50 / 100
    np.testing.assert_allclose(v, [-1.0], rtol=1e-6)


def test_sophia_with_a_key_holds_the_contract_of_optimizers():
    """The row with the Hessian passed has the rest; names and splits change the draws."""
    check_runs(optim.sophia(0.1, key=jax.random.key(0)))


# --- wrong inputs

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
    "schedule_free base": (lambda: optim.schedule_free(3, 0.1), errors.OptionError),
    "schedule_free rate": (lambda: optim.schedule_free_sgd(-1.0), errors.OptionError),
    "schedule_free b1": (lambda: optim.schedule_free_sgd(b1=1.1), errors.OptionError),
    "schedule_free warm-up": (lambda: optim.schedule_free_sgd(warmup_steps=-1), errors.OptionError),
    "schedule_free power": (
        lambda: optim.schedule_free_adamw(weight_lr_power=-1.0), errors.OptionError
    ),
    "lbfgs memory": (lambda: optim.lbfgs(memory_size=0), errors.OptionError),
    "wolfe c1": (lambda: optim.scale_by_wolfe_linesearch(c1=2.0), errors.OptionError),
    "wolfe steps": (lambda: optim.scale_by_wolfe_linesearch(0), errors.OptionError),
    "no value_fn": (lambda: updated(optim.lbfgs()), errors.InputError),
    "value_fn of a vector": (
        lambda: updated(optim.lbfgs(), value_fn=lambda p: p["w"]), errors.ShapeError
    ),
    "grad of another tree": (
        lambda: updated(optim.lbfgs(), value_fn=total, value=1.0, grad=jnp.ones(3)),
        errors.ParamsError,
    ),
    "prodigy b3": (lambda: optim.prodigy(b3=1.0), errors.OptionError),
    "prodigy rate": (lambda: optim.prodigy(-1.0), errors.OptionError),
    "prodigy d": (lambda: optim.prodigy(estim_lr0=-1.0), errors.OptionError),
    "shampoo eps": (lambda: optim.shampoo(0.1, eps=-1.0), errors.OptionError),
    "shampoo frequency": (
        lambda: optim.shampoo(0.1, precondition_frequency=0), errors.OptionError
    ),
    "soap b2": (lambda: optim.soap(b2=1.0), errors.OptionError),
    "soap size": (lambda: optim.soap(max_precondition_size=0), errors.OptionError),
    "sophia gamma": (lambda: optim.sophia(0.1, gamma=-1.0), errors.OptionError),
    "sophia key": (lambda: optim.sophia(0.1, key=3), errors.RandomKeyError),
    "sophia without a key": (
        lambda: updated(optim.sophia(0.1), value_fn=total), errors.RandomKeyError
    ),
    "sophia with neither": (lambda: updated(optim.sophia(0.1)), errors.InputError),
    "sophia's hessian": (
        lambda: updated(optim.sophia(0.1), hessian=jnp.ones(3)), errors.ParamsError
    ),
    "soap's state": (
        lambda: optim.scale_by_soap().update(jnp.eye(3), optim.scale_by_soap().init(jnp.eye(2))),
        errors.ShapeError,
    ),
    "lbfgs's state": (
        lambda: optim.scale_by_lbfgs().update(jnp.eye(3), (), jnp.eye(3)), errors.ParamsError
    ),
}  # fmt: skip


def total(p):
    return jnp.sum(p["w"])


def updated(tx, **extra):
    p = {"w": jnp.ones(3)}
    return tx.update(p, tx.init(p), p, **extra)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_by_fnns_errors(name):
    call, error = WRONG[name]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, fnn.FnnError)
