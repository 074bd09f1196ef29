"""Every rule that scales a gradient by moments or its sign: PyTorch, extremes, derivatives."""

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
from tests.optim import oracles, rows_adam, rows_adam_nesterov, rows_adam_second_moment, rows_sign
from tests.optim.rows import run
from tests.optim.support import first_update, normal, steps, updates_of
from tests.support import asarray

SCALINGS = {
    "scale_by_adam": rows_adam.adam,
    "scale_by_amsgrad": rows_adam.amsgrad,
    "scale_by_adamax": rows_adam.adamax,
    "scale_by_nadam": rows_adam_nesterov.nadam,
    "scale_by_radam": rows_adam_second_moment.radam,
    "scale_by_belief": rows_adam_second_moment.belief,
    "scale_by_yogi": rows_adam_second_moment.yogi,
    "scale_by_adan": rows_adam_nesterov.adan,
    "scale_by_sign": rows_sign.sign_sgd,
    "scale_by_lion": rows_sign.lion,
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
        "adamw": lambda: oracles.descend(rows_adam.adam)(gs, 1.0, 0.1, 0.1),
        "radam": lambda: oracles.descend(rows_adam_second_moment.radam)(gs, 1.0, 0.1, eps=1e-14),
        "rprop": lambda: rows_sign.rprop(gs, 1.0, 0.1),
    }
    rule = SCALINGS.get(f"scale_by_{name}")
    ours = ours.get(name, lambda: oracles.descend(rule)(gs, 1.0, 0.1))()
    path = [1.0]
    for g in gs:
        p.grad = torch.tensor([g])
        theirs.step()
        path.append(p.item())
    # torch keeps NAdam's product of mu in float32
    assert_allclose(np.diff(path), ours, rtol=1e-5 if name == "nadam" else 1e-8, atol=1e-12)


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
    grads = asarray([[1e-40, 1e37, -1e37]] * 5 + [[1.0] * 3] * 3, jnp.float32)
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
        return jnp.sum(c * run(tx, {"w": asarray(grads)}, {"w": jnp.zeros(3)})["w"])

    with jax.enable_x64(True):
        got = jax.device_get(jax.jit(jax.grad(ours))(jax.tree.map(jnp.float64, options)))
    for key, value in options.items():
        h = 1e-5 * value
        up, down = (oracle(**options | {key: value + d}) for d in (h, -h))
        assert_allclose(got[key], (up - down) / (2 * h), rtol=1e-5, atol=1e-8, err_msg=key)


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

    slopes = jax.jit(jax.grad(partial(total, getattr(optim, name)(0.1))))(jnp.zeros((8, 1)))
    assert np.isfinite(slopes).all()
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.jit(jax.grad(partial(total, getattr(optax, name)(0.1))))(jnp.zeros((8, 1)))
    assert np.isnan(theirs).any()


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
    assert np.isnan(jax.jit(jax.grad(partial(size, theirs)))(zero)).all()
    assert np.isfinite(jax.jit(jax.grad(partial(size, ours)))(zero)).all()


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
