"""Numbers that layers and schedules are built with: traced as plain, at both ends of a range."""

import os

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn.optim import schedules
from tests.support import asarray

KEY = jax.random.key(0)
X = asarray(np.random.default_rng(0).normal(size=(2, 6, 4)), "float32").at[0, 0].set(0)
INF = float("inf")

LAYERS = {
    "dropout": (fnn.dropout, (0.0, 0.5, 1.0)),
    "spatial_dropout": (lambda r: fnn.spatial_dropout(r, 1), (0.0, 1.0)),
    "drop_path": (lambda r: fnn.drop_path(r, 2), (0.0, 1.0)),
    "alpha_dropout": (fnn.alpha_dropout, (0.0, 0.5, 1.0)),
    "gaussian_noise": (fnn.gaussian_noise, (0.0, 1e30)),
    "momentum": (lambda m: fnn.batch_norm(momentum=m), (0.0, 1.0)),
    "eps of batch_norm": (lambda e: fnn.batch_norm(eps=e), (0.0, 1.0)),
    "eps of layer_norm": (lambda e: fnn.layer_norm(eps=e), (0.0, 1.0)),
    "eps of rms_norm": (lambda e: fnn.rms_norm(eps=e), (0.0, 1.0)),
    "eps of group_norm": (lambda e: fnn.group_norm(2, 1, eps=e), (0.0, 1.0)),
    "p of lp_pool": (lambda p: fnn.lp_pool((2,), p), (1.0, 2.0, 1e4)),
    "prelu": (fnn.prelu, (0.0, 1.0)),
    "zoneout": (lambda r: fnn.rnn(fnn.cells.zoneout(fnn.cells.gru(4), r)), (0.0, 1.0)),
    "variational_dropout": (lambda r: fnn.rnn(fnn.cells.variational_dropout(r)), (0.0, 1.0)),
    "recurrent_dropout": (lambda r: fnn.lstm(4, recurrent_dropout=r), (0.0, 1.0)),
    "r_min of lru": (lambda r: fnn.lru(4, r_min=r), (0.0, 0.99)),
    "r_max of lru": (lambda r: fnn.lru(4, r_min=0.0, r_max=r), (1e-3, 1 - 1e-6)),
    "max_phase of lru": (lambda p: fnn.lru(4, max_phase=p), (0.0, 10.0)),
    "alpha of lora": (lambda a: fnn.lora(fnn.dense(3), 2, alpha=a), (0.0, 2.0)),
    "fraction of prune": (lambda f: fnn.prune(fnn.dense(3), f), (0.0, 1.0)),
}


def outputs_of(build, option):
    """What a layer does with X in both modes, and its gradient by X."""
    net = build(option)
    params, state = net.init(KEY, X)

    def trained(x):
        y, new = net.apply(params, state, x, key=KEY, train=True)
        return jnp.sum(jnp.tanh(y)), (y, new)

    slope, (y, new) = jax.grad(trained, has_aux=True)(X)
    return y, new, net(params, X, state=state), slope


SOME = ("alpha_dropout", "eps of layer_norm", "r_min of lru")


def test_layers_with_traced_options_are_those_with_plain_ones():
    rows = {name: LAYERS[name] for name in (SOME if "FNN_QUICK" in os.environ else LAYERS)}

    def of_all(ends):
        return {
            name: [outputs_of(build, end) for end in ends[name]]
            for name, (build, _) in rows.items()
        }

    ends = {name: values for name, (_, values) in rows.items()}
    plain, traced = jax.jit(lambda: of_all(ends))(), jax.jit(of_all)(ends)
    for name, outputs in plain.items():
        for a, b in zip(*map(jax.tree.leaves, (outputs, traced[name])), strict=True):
            assert np.isfinite(a).all(), name
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, err_msg=name)


CURVES = {
    "linear": lambda n: schedules.linear(1.0, 0.5, n, n),
    "polynomial": lambda n: schedules.polynomial(1.0, 0.5, n, n),
    "exponential": lambda n: schedules.exponential(1.0, jnp.maximum(n, 1), 0.5, n),
    "decay_rate": lambda n: schedules.exponential(1.0, 3, n),
    "cosine": lambda n: schedules.cosine(1.0, n, n, n),
    "warmup_cosine": lambda n: schedules.warmup_cosine(0.0, 1.0, n, n + 3),
    "nothing but the warm-up": lambda n: schedules.warmup_linear(0.0, 1.0, n, n),
    "inverse_sqrt": lambda n: schedules.inverse_sqrt(1.0, n),
    "one_cycle from": lambda n: schedules.one_cycle(10, 1.0, pct_start=n),
    "one_cycle to": lambda n: schedules.one_cycle(10, 1.0, pct_start=n / 2, pct_final=n),
    "restarts": lambda n: schedules.restarts(1.0, jnp.maximum(n, 1)),
}


def test_schedules_with_traced_options_are_those_with_plain_ones():
    """Horizons, exponents, rates and shares of 0 and 1; their slopes are finite."""
    counts = jnp.arange(12)

    def of_all(ends):
        return {name: [build(end)(counts) for end in ends] for name, build in CURVES.items()}

    plain, traced = jax.jit(lambda: of_all((0, 1)))(), jax.jit(of_all)((0, 1))
    slopes = {name: 0 for name in CURVES}
    if "FNN_QUICK" not in os.environ:
        slopes = jax.jit(jax.jacfwd(of_all))((0.0, 1.0))
    for name in CURVES:
        for a, b in zip(plain[name], traced[name], strict=True):
            assert np.isfinite(a).all(), name
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=name)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(slopes[name])), name
