"""Rows and oracles of clipping, centring and noise."""

from math import fsum, prod, sqrt

import jax
import numpy as np
import optax
from hypothesis import strategies as st

import fnn
from tests.optim.oracles import length
from tests.optim.rows import Row, decays, elementwise, epsilons, per_leaf


def clip(gs, p, max_delta):
    return [max_delta if g > max_delta else -max_delta if g < -max_delta else g for g in gs]


def clip_by_global_norm(grads, params, max_norm):
    """Pascanu et al. 2013, algorithm 1."""
    updates = []
    for step in grads:
        norm = sqrt(fsum(float(v) ** 2 for g in step.values() for v in np.ravel(g)))
        factor = max_norm / norm if norm > max_norm else 1.0
        updates.append({name: g * factor for name, g in step.items()})
    return updates


def clip_by_block_rms(gs, p, threshold):
    updates = []
    for g in gs:
        rms = length(g) / sqrt(max(prod(g.shape), 1))
        updates.append(g * (threshold / rms) if rms > threshold else g)
    return updates


def units(shape):
    """What one output is computed from: the indices of each, the last axis being the output."""
    if len(shape) < 2:
        return [list(np.ndindex(shape))]
    return [[(*at, out) for at in np.ndindex(shape[:-1])] for out in range(shape[-1])]


def adaptive_grad_clip(gs, p, clipping, eps):
    """Brock et al. 2021, equation 3."""
    updates = []
    for g in gs:
        u = np.array(g, float)
        for unit in units(g.shape):
            norm_g = sqrt(fsum(g[at] ** 2 for at in unit))
            norm_p = max(sqrt(fsum(p[at] ** 2 for at in unit)), eps)
            if norm_g > clipping * norm_p:
                for at in unit:
                    u[at] = clipping * norm_p * (g[at] / norm_g)
        updates.append(u)
        p = p + u
    return updates


def centralize(gs, p):
    """Yong et al. 2020, equation 1."""
    updates = []
    for g in gs:
        u = np.array(g, float)
        if g.ndim > 1:
            for unit in units(g.shape):
                mean = fsum(g[at] for at in unit) / len(unit)
                for at in unit:
                    u[at] = g[at] - mean
        updates.append(u)
    return updates


sizes = st.sampled_from([0.0, 1e-3, 1.0, 1e6])
passing = elementwise(lambda gs, p, **options: gs)


ROWS = {
    "clip": Row(
        build=fnn.optim.clip,
        oracle=elementwise(clip),
        options=dict(max_delta=sizes),
        usual=dict(max_delta=0.5),
        optax=optax.clip,
    ),
    "clip_by_global_norm": Row(
        build=fnn.optim.clip_by_global_norm,
        oracle=clip_by_global_norm,
        options=dict(max_norm=sizes),
        usual=dict(max_norm=1.0),
        optax=optax.clip_by_global_norm,
    ),
    "clip_by_block_rms": Row(
        build=fnn.optim.clip_by_block_rms,
        oracle=per_leaf(clip_by_block_rms),
        options=dict(threshold=sizes),
        usual=dict(threshold=1.0),
        optax=optax.clip_by_block_rms,
        checks=dict(splits=False),
    ),
    "adaptive_grad_clip": Row(
        build=fnn.optim.adaptive_grad_clip,
        oracle=per_leaf(adaptive_grad_clip),
        options=dict(clipping=st.sampled_from([0.0, 0.01, 0.16, 10.0]), eps=epsilons),
        usual=dict(clipping=0.16, eps=1e-3),
        optax=optax.adaptive_grad_clip,
        needs_params=True,
        checks=dict(splits=False),
    ),
    "centralize": Row(
        build=fnn.optim.centralize,
        oracle=per_leaf(centralize),
        options={},
        usual={},
        scale="leaf",
        checks=dict(splits=False),
    ),
    "zero_nans": Row(
        build=fnn.optim.zero_nans, oracle=passing, options={}, usual={}, optax=optax.zero_nans
    ),
    "add_noise of none": Row(
        build=lambda gamma: fnn.optim.add_noise(0.0, gamma, jax.random.key(0)),
        oracle=passing,
        options=dict(gamma=decays),
        usual=dict(gamma=0.55),
    ),
}
