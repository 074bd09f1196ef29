"""Adam's family and the sign methods: PyTorch, published facts, meta-gradients, optax's faults."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fnn
from fnn import optim
from tests.optim import oracles_adaptive as oracles
from tests.optim.rows import run

SCALINGS = {
    "scale_by_adam": oracles.adam,
    "scale_by_amsgrad": oracles.amsgrad,
    "scale_by_adamax": oracles.adamax,
    "scale_by_nadam": oracles.nadam,
    "scale_by_radam": oracles.radam,
    "scale_by_belief": oracles.belief,
    "scale_by_yogi": oracles.yogi,
    "scale_by_adan": oracles.adan,
    "scale_by_sign": oracles.sign_sgd,
    "scale_by_lion": oracles.lion,
}
SMOOTH = {  # in their options; eps is as large as central differences need
    "scale_by_amsgrad": dict(b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3),
    "scale_by_adamax": dict(b1=0.8, b2=0.95, eps=1e-2),
    "scale_by_nadam": dict(b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3),
    "scale_by_radam": dict(b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3),
    "scale_by_belief": dict(b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3),
    "scale_by_yogi": dict(b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3, initial_accumulator_value=0.1),
    "scale_by_adan": dict(b1=0.8, b2=0.9, b3=0.95, eps=1e-2, eps_root=1e-3),
}


def updates_of(tx, grads, dtype=jnp.float32):
    """The updates for gradients [steps, ...], jitted."""
    grads = jnp.asarray(grads, dtype)
    return jax.jit(lambda g: run(tx, {"w": g}, {"w": jnp.zeros_like(g[0])})["w"])(grads)


# --- the oracles are PyTorch's


@pytest.mark.parametrize("name", ["adamw", "amsgrad", "adamax", "nadam", "radam", "rprop"])
def test_oracles_are_torchs(name):
    torch = pytest.importorskip("torch")
    gs = list(np.random.default_rng(0).normal(size=50))
    p = torch.ones(1, dtype=torch.float64, requires_grad=True)
    theirs = {
        "adamw": lambda: torch.optim.AdamW([p], 0.1, weight_decay=0.1),
        "amsgrad": lambda: torch.optim.Adam([p], 0.1, amsgrad=True),
        "adamax": lambda: torch.optim.Adamax([p], 0.1),
        "nadam": lambda: torch.optim.NAdam([p], 0.1, momentum_decay=float("inf")),
        "radam": lambda: torch.optim.RAdam([p], 0.1, eps=1e-14),
        "rprop": lambda: torch.optim.Rprop([p], 0.1),
    }[name]()
    ours = {
        "adamw": lambda: oracles.descend(oracles.adam)(gs, 1.0, 0.1, 0.1),
        "radam": lambda: oracles.descend(oracles.radam)(gs, 1.0, 0.1, eps=1e-14),
        "rprop": lambda: oracles.rprop(gs, 1.0, 0.1),
    }
    ours = ours.get(name, lambda: oracles.descend(getattr(oracles, name))(gs, 1.0, 0.1))()
    path = [1.0]
    for g in gs:
        p.grad = torch.tensor([g])
        theirs.step()
        path.append(p.item())
    # torch keeps NAdam's product of mu in float32
    assert_allclose(np.diff(path), ours, rtol=1e-5 if name == "nadam" else 1e-8, atol=1e-12)


# --- published facts and closed forms


@pytest.mark.parametrize("rule", ["adam", "amsgrad"])
def test_the_counterexample_to_adam(rule):
    """Reddi et al. 2018, theorem 1: on [-1, 1], slopes C, -1, -1 in turn sum up to C - 2 > 0, so
    that x should fall to -1; Adam with b1 = 0, b2 = 1 / (1 + C^2) climbs to 1."""
    c = 3.0
    tx = getattr(optim, rule)(
        lambda n: 0.5 / jnp.sqrt(1 + n.astype("float32")), 0.0, 1 / (1 + c**2)
    )

    def step(carry, t):
        x, opt_state = carry
        updates, opt_state = tx.update(jnp.where(t % 3 == 0, c, -1.0), opt_state)
        return (jnp.clip(x + updates, -1, 1), opt_state), None

    start = jnp.zeros(()), tx.init(jnp.zeros(()))
    (x, _), _ = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(3000)))()
    assert x > 0.9 if rule == "adam" else x < -0.9


def test_amsgrads_second_moment_never_falls():
    grads = np.random.default_rng(0).normal(size=(50, 3))
    tx = optim.scale_by_amsgrad(b2=0.5)
    _, kept = jax.lax.scan(
        lambda s, g: (tx.update(g, s)[1],) * 2, tx.init(jnp.zeros(3)), jnp.asarray(grads, "float32")
    )
    assert (np.diff(kept.nu_max, axis=0) >= 0).all()
    assert (np.diff(kept.nu, axis=0) < 0).any()


def test_radam_begins_as_momentum_and_ends_as_adam():
    """With b2 = 0.999, rho_t is below 5 up to t = 5; and tends to rho_inf, r_t to 1."""
    grads = np.random.default_rng(0).normal(size=(8, 4))
    got = updates_of(optim.scale_by_radam(0.5), grads)
    m = np.zeros(4)
    for t, g in enumerate(grads[:5], start=1):
        m = 0.5 * m + 0.5 * g
        assert_allclose(got[t - 1], m / (1 - 0.5**t), rtol=1e-5)
    assert (np.abs(got[5:]) < 0.1).all()  # r_6 = 0.04
    radam, adam = optim.scale_by_radam(), optim.scale_by_adam()
    g = jnp.asarray(grads[0], "float32")
    state = adam.init(g)._replace(count=jnp.int32(10**6), mu=g / 2, nu=g**2)
    assert_allclose(radam.update(g, state)[0], adam.update(g, state)[0], rtol=1e-5)


@pytest.mark.parametrize("rule", [optim.adamw, optim.lion, optim.adan])
def test_decay_is_decoupled(rule):
    """Where there is no gradient, p shrinks by learning_rate weight_decay of itself, if masked."""
    tx = rule(0.5, weight_decay=0.25, mask={"a": True, "b": False})
    p = {"a": jnp.full(2, 8.0), "b": jnp.ones(())}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)
    assert_array_equal(updates["a"], [-1.0, -1.0])
    assert updates["b"] == 0


@pytest.mark.parametrize("name", SCALINGS)
def test_scale_of_gradients_does_not_matter(name):
    """Bitwise, for powers of two, without eps. RAdam begins as momentum."""
    rule = getattr(optim, name)
    epsilons = ("eps", "eps_root", "initial_accumulator_value")
    tx = rule(**{o: 0.0 for o in inspect.signature(rule).parameters if o in epsilons})
    grads = np.random.default_rng(0).normal(size=(12, 4))
    from_first = 5 if name == "scale_by_radam" else 0
    got, want = updates_of(tx, grads * 2.0**30), updates_of(tx, grads)
    assert_array_equal(got[from_first:], want[from_first:])


@pytest.mark.parametrize("name", SCALINGS)
def test_the_defaults_in_float32(name):
    """RAdam's rho_t and 4 share three digits at first."""
    grads = np.float32(np.random.default_rng(0).normal(size=(50, 4)))
    got = updates_of(getattr(optim, name)(), grads)
    want = np.transpose([SCALINGS[name](list(map(float, gs)), 0.0) for gs in grads.T])
    assert_allclose(got, want, atol=1e-3 if name == "scale_by_radam" else 3e-5)


@pytest.mark.parametrize("name", SCALINGS)
def test_denormal_and_huge_gradients_stay_finite(name):
    """A square may overflow, but not into NaN, nor may the gradients after it."""
    grads = jnp.asarray([[1e-40, 1e37, -1e37]] * 5 + [[1.0] * 3] * 3, jnp.float32)
    assert np.isfinite(updates_of(getattr(optim, name)(), grads)).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_meta_gradients_are_numeric(name):
    """d sum(c u) / d options over 8 steps, with zero gradients among them."""
    options = SMOOTH[name]
    rng = np.random.default_rng(0)
    grads, c = rng.normal(size=(2, 8, 3))
    grads[:, 1] = 0
    grads[:3, 2] = 0

    def oracle(**options):
        return np.sum(c.T * [SCALINGS[name](list(gs), 0.0, **options) for gs in grads.T])

    def ours(options):
        tx = getattr(optim, name)(**options)
        return jnp.sum(c * run(tx, {"w": jnp.asarray(grads)}, {"w": jnp.zeros(3)})["w"])

    with jax.enable_x64(True):
        got = jax.device_get(jax.jit(jax.grad(ours))(jax.tree.map(jnp.float64, options)))
    for key, value in options.items():
        h = 1e-5 * value
        up, down = (oracle(**options | {key: value + d}) for d in (h, -h))
        assert_allclose(got[key], (up - down) / (2 * h), rtol=1e-5, atol=1e-8, err_msg=key)


# --- what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: optim.scale_by_adam(eps_root=-1.0),
        lambda: optim.adamw(0.1, weight_decay=-1.0),
        lambda: optim.adamw(0.1, b1=1.0),
        lambda: optim.amsgrad(0.1, b2=1.5),
        lambda: optim.adamax(0.1, eps=-1e-8),
        lambda: optim.nadam("fast"),
        lambda: optim.radam(0.1, threshold=3.0),
        lambda: optim.adabelief(0.1, eps=None),
        lambda: optim.yogi(0.1, initial_accumulator_value=-1.0),
        lambda: optim.adan(0.1, b3=1.0),
        lambda: optim.lion(0.1, b1=-0.1),
        lambda: optim.signum(0.1, beta=1.0),
        lambda: optim.optimistic_adam(0.1, optimism="much"),
        lambda: optim.adamw(0.1, mu_dtype=jnp.int8),
        lambda: optim.rprop(-0.1),
        lambda: optim.rprop(0.1, eta_minus=1.5),
        lambda: optim.rprop(0.1, eta_plus=0.5),
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fnn.FnnError, match="expected"):
        wrong()


# --- where optax 0.2.8 differs


ADAMS = ["adam", "adamw", "amsgrad", "adamax", "nadam", "radam", "adabelief", "adan"]


@pytest.mark.parametrize("name", ADAMS)
def test_a_zero_gradient_in_float16(name):
    """eps is 0 in float16, and optax's moments are of float16: 0 / 0."""
    zeros = jnp.zeros((8, 2))  # RAdam divides from the sixth update on
    with jax.numpy_dtype_promotion("standard"):
        assert np.isnan(updates_of(getattr(optax, name)(0.1), zeros, jnp.float16)).any()
    assert (updates_of(getattr(optim, name)(0.1), zeros, jnp.float16) == 0).all()


@pytest.mark.parametrize("name", ["adam", "adamw", "amsgrad", "nadam", "radam"])
def test_the_derivative_at_a_zero_gradient(name):
    """The slope of sqrt at 0 is infinite, and infinity times 0 NaN."""

    def total(tx, g):
        return jnp.sum(run(tx, {"w": g}, {"w": jnp.zeros(1)})["w"])

    slopes = jax.grad(partial(total, getattr(optim, name)(0.1)))(jnp.zeros((8, 1)))
    assert np.isfinite(slopes).all()
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.grad(partial(total, getattr(optax, name)(0.1)))(jnp.zeros((8, 1)))
    assert np.isnan(theirs).any()


def test_the_second_moment_in_bfloat16():
    """v = 1 - 0.999^3000 = 0.95 for gradients of 1; where 0.001 (1 - v) is less than half a unit
    of bfloat16's last place, v no longer moves."""

    def moment(tx):
        g = jnp.ones((), jnp.bfloat16)
        turn = jax.jit(lambda s: jax.lax.fori_loop(0, 3000, lambda _, s: tx.update(g, s)[1], s))
        return float(turn(tx.init(g)).nu)

    assert_allclose(moment(optim.scale_by_adam()), 1 - 0.999**3000, rtol=1e-4)
    with jax.numpy_dtype_promotion("standard"):
        assert moment(optax.scale_by_adam()) < 0.6


def test_yogi_stands_still_on_a_zero_gradient():
    zeros = jnp.zeros((2, 3))
    with jax.numpy_dtype_promotion("standard"):
        assert (updates_of(optax.yogi(0.1), zeros) < -1e-6).all()
    assert (updates_of(optim.yogi(0.1), zeros) == 0).all()


def test_adan_weighs_the_change_by_b2():
    """g = 1, 2: by hand, with b1 = b3 = 0.5 and b2 = 0.75."""
    m, v, n = 0.5 * 0.5 + 0.5 * 2, 0.25 * 1, 0.5 * 0.5 + 0.5 * (2 + 0.75) ** 2
    want = (m / 0.75 + 0.75 * v / (1 - 0.75**2)) / np.sqrt(n / 0.75)
    options = dict(b1=0.5, b2=0.75, b3=0.5, eps=0.0)
    ours = updates_of(optim.scale_by_adan(**options), [[1.0], [2.0]])
    assert_allclose(ours[1], want, rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        theirs = updates_of(optax.scale_by_adan(**options), [[1.0], [2.0]])
    n = 0.5 * 0.5 + 0.5 * (2 + 0.25) ** 2
    assert_allclose(theirs[1], (m / 0.75 + 0.25 * v / (1 - 0.75**2)) / np.sqrt(n / 0.75), rtol=1e-6)


def test_amsgrads_maximum_is_of_uncorrected_moments():
    """g = 3, 0, 0 ...: w = (1 - b2) 9 throughout, and what = w / (1 - b2^t); optax's stays 9."""
    grads = jnp.zeros((6, 1)).at[0].set(3.0).at[1:].set(1e-3)
    options = dict(b1=0.0, b2=0.5, eps=0.0)
    ours = updates_of(optim.scale_by_amsgrad(**options), grads)
    assert_allclose(ours[-1], 1e-3 / np.sqrt(4.5 / (1 - 0.5**6)), rtol=1e-5)
    with jax.numpy_dtype_promotion("standard"):
        theirs = updates_of(optax.scale_by_amsgrad(**options), grads)
    assert_allclose(theirs[-1], 1e-3 / 3, rtol=1e-5)
    same = updates_of(optim.scale_by_amsgrad(**options, correct_first=True), grads)
    assert_allclose(same, theirs, rtol=1e-5)


def test_rprop_moves_by_the_gradient_it_was_given():
    grads = [[1.0], [2.0], [-1.0], [-1.0]]
    assert_allclose(updates_of(optim.rprop(0.1), grads)[:, 0], [-0.1, -0.12, 0, 0.06], rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        theirs = updates_of(optax.rprop(0.1), grads)
    assert_allclose(theirs[:, 0], [0, -0.1, 0, 0], rtol=1e-6)


def test_radams_derivative_by_b2():
    """Before rho_t is 4, r_t is the root of a negative number, and optax differentiates it."""
    g = {"w": jnp.ones((4, 1))}

    def total(lib, b2):
        return jnp.sum(run(lib.scale_by_radam(b2=b2), g, {"w": jnp.zeros(1)})["w"])

    assert jax.grad(partial(total, optim))(0.999) == 0  # momentum alone
    with jax.numpy_dtype_promotion("standard"):
        assert np.isnan(jax.grad(partial(total, optax))(0.999))
