"""RMSprop to LARS: closed forms, PyTorch, where optax differs, and what the builders refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
from fnn import optim
from tests.optim import oracles_scaled as oracles


def steps(tx, grads, params):
    """The updates for gradients [steps, ...], with params that follow them, and the last state."""

    def step(carry, g):
        params, opt_state = carry
        updates, opt_state = tx.update(g, opt_state, params)
        return (jax.tree.map(lambda p, u: p + u, params, updates), opt_state), updates

    with jax.numpy_dtype_promotion("standard"):  # optax asks for it
        run = jax.jit(lambda g, p: jax.lax.scan(step, (p, tx.init(p)), g))
        (_, opt_state), updates = run(grads, params)
    return updates, opt_state


def normal(*shape, seed=0):
    """In the widest float that is enabled."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), float)


# --- closed forms


def test_adagrad_of_a_constant_gradient_goes_down_as_the_root_of_time():
    tx = optim.scale_by_rss(initial_accumulator_value=0.0, eps=0.0)
    updates, _ = steps(tx, jnp.array([[3.0, -1e-3]] * 5), jnp.zeros(2))
    want = np.outer(1 / np.sqrt(np.arange(1, 6)), [1, -1])
    np.testing.assert_allclose(updates, want, rtol=1e-6)


def test_centered_rms_of_a_constant_gradient_is_a_geometric_series():
    """n - m^2 = g^2 (1 - d^t) d^t for g always the same."""
    d, t = 0.5, np.arange(1, 31)
    with jax.enable_x64(True):
        tx = optim.scale_by_stddev(decay=d, eps=0.0)
        updates, _ = steps(tx, jnp.full(30, 7.0), jnp.zeros(()))
    np.testing.assert_allclose(updates, 1 / np.sqrt((1 - d**t) * d**t), rtol=1e-12)


def test_sm3_of_a_vector_or_a_scalar_is_adagrad():
    grads = {"v": normal(4, 5), "s": normal(4, seed=1)}
    params = {"v": jnp.zeros(5), "s": jnp.zeros(())}
    got, _ = steps(optim.scale_by_sm3(b1=0.0), grads, params)
    want, _ = steps(optim.scale_by_rss(0.0, 0.0), grads, params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)


def test_sm3_bounds_adagrads_sum_from_above_in_little_memory():
    """Anil et al. 2019, on SM3-II: every v_t(i) is at least the sum of g_t(i)^2."""
    grads = normal(6, 3, 4, 5)
    updates, opt_state = steps(optim.scale_by_sm3(b1=0.0), grads, grads[0])
    row, column, depth = opt_state.mu
    assert [row.shape, column.shape, depth.shape] == [(3,), (4,), (5,)]
    total = np.cumsum(np.square(np.float64(grads)), 0)
    v = np.square(np.float64(grads) / np.float64(updates))
    assert (v >= total * (1 - 1e-5)).all()
    cover = np.minimum(np.minimum(row[:, None, None], column[:, None]), depth)
    np.testing.assert_array_less(total[-1], cover * (1 + 1e-5))


def test_factored_rms_is_exact_for_squares_of_rank_one():
    rows, columns = np.abs(normal(4)) + 0.1, np.abs(normal(6, seed=1)) + 0.1
    signs = np.where(normal(4, 6, seed=2) > 0, 1.0, -1.0)
    grads = jnp.tile(jnp.asarray(signs * np.outer(rows, columns), float), (3, 1, 1))
    for least, shapes in (1, [(4,), (6,), (0,)]), (100, [(0,), (0,), (4, 6)]):
        tx = optim.scale_by_factored_rms(min_dim_size_to_factor=least)
        updates, opt_state = steps(tx, grads, grads[0])
        np.testing.assert_allclose(updates, np.stack([signs] * 3), rtol=1e-5)
        assert [a.shape for a in opt_state[1:]] == shapes


@pytest.mark.parametrize("shape", [(7, 3, 5), (4, 4, 4), (2, 5, 4, 3)])
def test_the_two_longest_axes_are_factored_and_the_others_stacked(shape):
    with jax.enable_x64(True):
        grads = normal(2, *shape)
        ours, theirs = (
            steps(lib.scale_by_factored_rms(min_dim_size_to_factor=4), grads, grads[0])[0]
            for lib in (optim, optax)
        )
    want = oracles.factored_rms(list(np.asarray(grads)), 4)
    np.testing.assert_allclose(ours, want, rtol=1e-12)
    np.testing.assert_allclose(theirs, want, rtol=1e-6)  # its decay is float32


def test_adafactor_takes_the_papers_relative_step():
    """min(0.01, 1 / sqrt(t)) of the params' RMS, and min_scale of it where they are zero."""
    params = {"w": jnp.full(3, 2.0), "zero": jnp.zeros(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    tx = optim.adafactor()
    updates, opt_state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.02, rtol=1e-6)
    np.testing.assert_allclose(updates["zero"], -1e-5, rtol=1e-6)
    late = jax.tree.map(lambda a: jnp.full_like(a, 40_000 - 1) if a.dtype == "int32" else a,
                        opt_state)  # fmt: skip
    updates, _ = tx.update(grads, late, params)
    np.testing.assert_allclose(updates["w"], -2 / 200, rtol=2e-6)


def test_the_length_of_a_step_is_lambs_rate_and_larss_coefficient():
    p, g = normal(2, 4, 3)
    u, _ = (tx := optim.lamb(0.01, weight_decay=0.1)).update(g, tx.init(p), p)
    np.testing.assert_allclose(np.linalg.norm(u), 0.01 * np.linalg.norm(p), rtol=1e-5)
    u, _ = (tx := optim.lars(2.0)).update(g, tx.init(p), p)
    np.testing.assert_allclose(np.linalg.norm(u), 2e-3 * np.linalg.norm(p), rtol=1e-5)


@pytest.mark.parametrize("power", [-12, 12])
@pytest.mark.parametrize(
    "tx",
    [
        optim.scale_by_rms(eps=0.0),
        optim.scale_by_stddev(eps=0.0),
        optim.scale_by_rss(0.0, 0.0),
        optim.scale_by_novograd(eps=0.0),
        optim.scale_by_sm3(),
        optim.scale_by_factored_rms(min_dim_size_to_factor=2, eps=0.0),
        optim.scale_by_trust_ratio(),
    ],
)
def test_without_eps_the_gradients_scale_does_not_matter(tx, power):
    grads, params = normal(3, 3, 4), jnp.ones((3, 4))
    plain, scaled = (steps(tx, scale * grads, params)[0] for scale in (1.0, 10.0**power))
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)


def test_masks_of_lamb_and_lars():
    """LAMB's leaves out of decay; LARS's takes the gradient as it is, with momentum."""
    p = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([1.0])}
    g = {"kernel": jnp.array([0.0, 2.0]), "bias": jnp.array([5.0])}
    tx = optim.lars(1.0, weight_decay=0.1, mask="kernel")
    updates, _ = tx.update(g, tx.init(p), p)
    np.testing.assert_allclose(updates["bias"], -5)
    want = 1e-3 * 5 / (2 + 0.5) * np.array([0.3, 2.4])
    np.testing.assert_allclose(updates["kernel"], -want, rtol=1e-6)
    decayed, plain = (
        optim.lamb(1.0, weight_decay=w, mask=m) for w, m in ((0.5, "kernel"), (0.0, None))
    )
    bias = [tx.update(g, tx.init(p), p)[0]["bias"] for tx in (decayed, plain)]
    np.testing.assert_allclose(*bias)


# --- PyTorch

TORCH = {
    "rmsprop": (
        dict(decay=0.99, eps_in_sqrt=False, momentum=0.9),
        lambda torch, p: torch.optim.RMSprop([p], lr=0.1, alpha=0.99, momentum=0.9),
    ),
    "rmsprop centered": (
        dict(decay=0.9, eps_in_sqrt=False, centered=True),
        lambda torch, p: torch.optim.RMSprop([p], lr=0.1, alpha=0.9, centered=True),
    ),
    "adagrad": (
        dict(initial_accumulator_value=0.0, eps=1e-10, eps_in_sqrt=False),
        lambda torch, p: torch.optim.Adagrad([p], lr=0.1),
    ),
    "adadelta": (
        dict(rho=0.95, eps=1e-6),
        lambda torch, p: torch.optim.Adadelta([p], lr=0.1, rho=0.95),
    ),
    "adafactor": (
        dict(min_dim_size_to_factor=1),
        # its eps1, 2e-16 here, is in the root alone: nothing for gradients of size 1
        lambda torch, p: torch.optim.Adafactor([p], lr=0.1, weight_decay=0.0),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_pytorch_agrees(name):
    torch = pytest.importorskip("torch")
    options, theirs = TORCH[name]
    with jax.enable_x64(True):
        grads = normal(10, 3, 4)
        start = normal(3, 4, seed=1)
    p = torch.nn.Parameter(torch.tensor(np.asarray(start)))
    optimizer = theirs(torch, p)
    path = []
    for g in grads:
        p.grad = torch.tensor(np.asarray(g))
        optimizer.step()
        path.append(p.detach().numpy().copy())
    rate = 0.1
    if name == "adafactor":  # the rate is its bound on the relative step

        def rate(count):
            return jnp.minimum(0.1, 1 / jnp.sqrt(count.astype(float) + 1))

    with jax.enable_x64(True):
        tx = getattr(optim, name.split()[0])(rate, **options)
        updates, _ = steps(tx, grads, start)
    np.testing.assert_allclose(
        np.asarray(start) + np.cumsum(np.asarray(updates), 0), path, rtol=1e-9, atol=1e-9
    )


# --- where optax 0.2.8 differs: each shows both


def first_update(tx, g, p=None):
    p = jnp.ones_like(g) if p is None else p
    with jax.numpy_dtype_promotion("standard"):
        return np.float64(jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(g, p))


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (optim.rmsprop(0.1), optax.rmsprop(0.1)),
        (optim.rmsprop(0.1, centered=True), optax.rmsprop(0.1, centered=True)),
        (optim.novograd(0.1, eps=1e-8), optax.novograd(0.1, eps=1e-8)),
        (optim.adafactor(0.1), optax.adafactor(0.1)),
    ],
)
def test_zero_gradient_in_float16(ours, theirs):
    """eps is 0 in float16, and 0 / 0 is NaN."""
    g = jnp.zeros(3, "float16")
    assert np.isnan(first_update(theirs, g)).all()
    np.testing.assert_array_equal(first_update(ours, g), 0)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (optim.lamb(0.1), optax.lamb(0.1)),
        (optim.novograd(0.1), optax.novograd(0.1)),
        (optim.adafactor(0.1), optax.adafactor(0.1)),
    ],
)
def test_reverse_mode_through_a_zero_gradient(ours, theirs):
    def size(tx, g):
        p = jnp.ones_like(g)
        with jax.numpy_dtype_promotion("standard"):
            return jnp.sum(tx.update(g, tx.init(p), p)[0])

    zero = jnp.zeros(3)
    assert np.isnan(jax.grad(partial(size, theirs))(zero)).all()
    assert np.isfinite(jax.grad(partial(size, ours))(zero)).all()


def test_centered_rms_of_nearly_constant_gradients():
    """n - m^2 is a difference of nearly equal numbers: negative by rounding, and its root NaN."""
    grads = 1e3 * (1 + 1e-5 * normal(200, 3))
    ours, theirs = (steps(lib.scale_by_stddev(), grads, grads[0])[0] for lib in (optim, optax))
    assert np.isnan(theirs).any(0).all()
    want = [oracles.rms(np.float64(g), 0.0, centered=True) for g in np.transpose(grads)]
    np.testing.assert_allclose(ours, np.transpose(want), rtol=0.1)


def test_lars_measures_the_gradient_and_the_decay_apart():
    """You et al. 2017, algorithm 1: |g| + decay |p|; optax has |g + decay p|, which may be 0."""
    p = jnp.array([3.0, 4.0])
    g = -0.5 * p * (1 - 1e-3)
    ours, theirs = (lib.lars(1.0, weight_decay=0.5) for lib in (optim, optax))
    np.testing.assert_allclose(np.linalg.norm(first_update(theirs, g, p)), 5e-3, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(first_update(ours, g, p)), 2.5e-6, rtol=1e-3)
    like_theirs = optim.chain(
        optim.add_decayed_weights(0.5),
        optim.scale_by_trust_ratio(trust_coefficient=0.001),
        optim.scale_by_learning_rate(1.0),
        optim.trace(0.9),
    )
    np.testing.assert_allclose(
        first_update(like_theirs, g, p), first_update(theirs, g, p), rtol=1e-3
    )


def test_rmsprops_velocity_does_not_remember_the_rate():
    """PyTorch and sgd scale the velocity by the rate; optax gathers scaled steps."""

    def schedule(count):
        return jnp.where(count == 0, 1.0, 0.0)

    grads = jnp.ones((2, 1))
    ours, theirs = (lib.rmsprop(schedule, momentum=0.9) for lib in (optim, optax))
    assert steps(ours, grads, grads[0])[0][1] == 0
    assert steps(theirs, grads, grads[0])[0][1] < -1


def test_larss_velocity_remembers_the_rate():
    """You et al. 2017, algorithm 1: the velocity gathers scaled steps."""
    tx = optim.lars(lambda count: jnp.where(count == 0, 1.0, 0.0), momentum=0.9)
    first, second = steps(tx, jnp.ones((2, 3)), jnp.ones(3))[0]
    np.testing.assert_allclose(second, 0.9 * first)


def test_sm3_of_scalars_empty_leaves_schedules_and_tiny_gradients():
    for wrong in (jnp.zeros(()), jnp.zeros((0, 3))):
        with pytest.raises((IndexError, ValueError)):
            first_update(optax.sm3(0.1), wrong)
        assert first_update(optim.sm3(0.1), wrong).shape == wrong.shape
    with pytest.raises(TypeError):
        first_update(optax.sm3(lambda count: 0.1), jnp.ones(1))
    tiny = jnp.full(2, 1e-6)
    np.testing.assert_allclose(first_update(optax.sm3(1.0), tiny), -1e-3, rtol=1e-3)
    np.testing.assert_allclose(first_update(optim.sm3(1.0), tiny), -0.1, rtol=1e-3)
    np.testing.assert_allclose(first_update(optim.sm3(1.0, eps=1e-8), tiny), -1e-3, rtol=1e-3)


def test_adafactors_learning_rate_scales_its_decay_and_may_be_the_papers():
    p, zero = jnp.full(4, 2.0), jnp.zeros(4)
    np.testing.assert_allclose(
        first_update(optax.adafactor(0.1, weight_decay_rate=0.5), zero, p), -1
    )
    np.testing.assert_allclose(
        first_update(optim.adafactor(0.1, weight_decay=0.5), zero, p), -0.1, rtol=1e-6
    )
    np.testing.assert_allclose(first_update(optax.adafactor(), p, p), -2, rtol=1e-5)  # rate 1
    np.testing.assert_allclose(first_update(optim.adafactor(), p, p), -0.02, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (16,)])
def test_adafactor_of_gradients_whose_squares_overflow(shape):
    g = jnp.full(shape, 1e25)
    ours = first_update(optim.scale_by_factored_rms(min_dim_size_to_factor=2), g)
    assert np.isfinite(ours).all()
    theirs = first_update(optax.scale_by_factored_rms(min_dim_size_to_factor=2), g)
    assert np.isnan(theirs).all() == (shape == (4, 4))


def test_adafactors_decay_in_float64():
    with jax.enable_x64(True):
        grads = jnp.array([[1.0], [2.0]])
        ours, theirs = (
            steps(lib.scale_by_factored_rms(), grads, grads[0])[0][1] for lib in (optim, optax)
        )
    want = 2 / np.sqrt(1 + 3 * 2**-0.8)
    assert abs(float(ours[0]) / want - 1) < 1e-15
    assert abs(float(theirs[0]) / want - 1) > 1e-9


def test_trust_ratio_of_a_large_leaf_in_float16():
    """The norm of 10,000 params of 10 is 1000; optax sums their squares in float16."""
    p, g = jnp.full(10_000, 10.0, "float16"), jnp.full(10_000, 0.01, "float16")
    ours, theirs = (lib.scale_by_trust_ratio() for lib in (optim, optax))
    np.testing.assert_allclose(first_update(ours, g, p), 10, rtol=1e-3)
    assert not np.isfinite(first_update(theirs, g, p)).any()


def test_trust_ratio_of_a_tiny_update():
    """Squares underflow, and optax takes the norm for zero."""
    p, g = jnp.full(2, 3.0), jnp.full(2, 1e-25)
    ours, theirs = (lib.scale_by_trust_ratio() for lib in (optim, optax))
    np.testing.assert_allclose(first_update(ours, g, p), 3, rtol=1e-5)
    np.testing.assert_allclose(first_update(theirs, g, p), 1e-25, rtol=1e-5)


# --- what is refused

BAD = [
    (optim.scale_by_rms, dict(decay=1.0), "decay"),
    (optim.scale_by_rms, dict(eps=-1e-8), "eps"),
    (optim.scale_by_rms, dict(initial_scale=-1.0), "initial_scale"),
    (optim.scale_by_stddev, dict(decay=-0.1), "decay"),
    (optim.scale_by_stddev, dict(eps=float("nan")), "eps"),
    (optim.scale_by_stddev, dict(initial_scale="0"), "initial_scale"),
    (optim.rmsprop, dict(learning_rate=0.1, momentum=1.5), "decay"),
    (optim.rmsprop, dict(learning_rate=0.1, nesterov=True), "momentum"),
    (optim.scale_by_rss, dict(initial_accumulator_value=-1), "initial_accumulator_value"),
    (optim.scale_by_rss, dict(eps=None), "eps"),
    (optim.adagrad, dict(learning_rate="fast"), "learning_rate"),
    (optim.scale_by_adadelta, dict(rho=1.0), "rho"),
    (optim.scale_by_adadelta, dict(eps=-1.0), "eps"),
    (optim.scale_by_novograd, dict(b1=1.0), "b1"),
    (optim.scale_by_novograd, dict(b2=1.0), "b2"),
    (optim.scale_by_novograd, dict(eps=-1.0), "eps"),
    (optim.novograd, dict(learning_rate=0.1, weight_decay=-1.0), "weight_decay"),
    (optim.scale_by_factored_rms, dict(decay_rate=-0.8), "decay_rate"),
    (optim.scale_by_factored_rms, dict(min_dim_size_to_factor=0), "min_dim_size_to_factor"),
    (optim.scale_by_factored_rms, dict(eps=-1.0), "eps"),
    (optim.scale_by_param_block_rms, dict(min_scale=-1.0), "min_scale"),
    (optim.adafactor, dict(clipping_threshold=-1.0), "threshold"),
    (optim.scale_by_sm3, dict(b1=1.0), "b1"),
    (optim.scale_by_sm3, dict(eps=-1.0), "eps"),
    (optim.scale_by_trust_ratio, dict(min_norm=-1.0), "min_norm"),
    (optim.scale_by_trust_ratio, dict(trust_coefficient=-1.0), "trust_coefficient"),
    (optim.scale_by_trust_ratio, dict(eps=-1.0), "eps"),
    (optim.scale_by_trust_ratio, dict(weight_decay=-1.0), "weight_decay"),
    (optim.lamb, dict(learning_rate=0.1, b2=2.0), "b2"),
    (optim.lars, dict(learning_rate=0.1, mask=3), "mask"),
]


@pytest.mark.parametrize("build, options, named", BAD)
def test_options_out_of_range(build, options, named):
    with pytest.raises(fnn.errors.OptionError, match=named):
        build(**options)


@pytest.mark.parametrize(
    "tx",
    [
        optim.scale_by_novograd(weight_decay=0.1),
        optim.scale_by_param_block_rms(),
        optim.scale_by_trust_ratio(),
    ],
)
def test_params_are_asked_for_under_jit_too(tx):
    g = {"w": jnp.ones(2)}
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(fnn.errors.ParamsError, match="params=None"):
            update(g, tx.init(g))


def test_the_state_of_another_shape_or_method_is_refused():
    g = jnp.ones((2, 3))
    for tx in (optim.scale_by_sm3(), optim.scale_by_factored_rms(), optim.scale_by_novograd()):
        with pytest.raises(fnn.FnnError, match="the optimizer's state"):
            tx.update(g, tx.init(jnp.ones((3, 3))))
        with pytest.raises(fnn.FnnError, match="the optimizer's state"):
            tx.update(g, optim.scale_by_rms().init(g))
        with pytest.raises(fnn.FnnError, match="floating"):
            tx.update(jnp.ones((2, 3), int), tx.init(g))
