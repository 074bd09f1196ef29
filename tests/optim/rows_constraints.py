"""Rows and oracles of projections."""

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

import fnn
from fnn.optim import constraints as onto
from tests.optim.oracles import length
from tests.optim.rows import Row, elementwise, per_leaf


def projected(onto):
    """Projected descent along the gradients as they are: p = onto(p + g)."""

    def rule(gs, p, **options):
        updates = []
        for g in gs:
            updates.append(onto(p + g, **options) - p)
            p = p + updates[-1]
        return updates

    return rule


def non_negative(x):
    return np.where(x < 0, 0.0, x)


def box(x, lower, upper):
    return np.where(x < lower, lower, np.where(x > upper, upper, x))


def l2_ball(x, radius):
    return x * (radius / length(x)) if length(x) > radius else x


def simplex(x, total):
    """The nearest point of the simplex: of all supports, the one that its conditions hold for.

    y_i = x_i - theta where x_i > theta, else 0, with theta from sum(y) = total. In fractions, since
    the conditions are strict: at a distance of 1e3, float64 cannot tell supports apart by distance.
    """
    flat, total = [Fraction(float(v)) for v in np.ravel(x)], Fraction(float(total))
    for k in range(1, len(flat) + 1):
        for support in itertools.combinations(range(len(flat)), k):
            theta = (sum(flat[i] for i in support) - total) / k
            if all((v > theta) == (i in support) for i, v in enumerate(flat)):
                return np.reshape([float(max(v - theta, 0)) for v in flat], np.shape(x))
    return np.zeros(np.shape(x))  # for total 0, where nothing is above theta


sizes = st.sampled_from([0.0, 1e-3, 1.0, 1e6])


ROWS = {
    "project on box": Row(
        build=lambda lower, upper: fnn.optim.project(onto.box(lower, upper)),
        oracle=elementwise(projected(lambda x, **bounds: float(box(x, **bounds)))),
        options=dict(lower=st.sampled_from([-1.0, 0.0]), upper=st.sampled_from([0.25, 2.0])),
        usual=dict(lower=-1.0, upper=1.0),
        needs_params=True,
    ),
    "project on non_negative": Row(
        build=lambda: fnn.optim.project(onto.non_negative),
        oracle=elementwise(projected(lambda x: float(non_negative(x)))),
        options={},
        usual={},
        needs_params=True,
    ),
    "project on l2_ball": Row(
        build=lambda radius: fnn.optim.project(onto.l2_ball(radius)),
        oracle=per_leaf(projected(l2_ball)),
        options=dict(radius=sizes),
        usual=dict(radius=1.0),
        scale="leaf",
        needs_params=True,
        checks=dict(splits=False),
    ),
    "project on simplex": Row(
        build=lambda total: fnn.optim.project(onto.simplex(total)),
        oracle=per_leaf(
            projected(
                lambda x, total: np.apply_along_axis(simplex, -1, np.atleast_1d(x), total).reshape(
                    np.shape(x)
                )
            )
        ),
        options=dict(total=st.sampled_from([0.5, 1.0, 10.0])),
        usual=dict(total=1.0),
        low=-3,
        high=3,
        scale="leaf",
        needs_params=True,
        checks=dict(splits=False, still=False),
    ),
}
