"""What tests of all parts use: how close is close, and what a good message is."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import errors

QUICK = "FNN_QUICK" in os.environ  # make test


def but_full(cases, full):
    """Parameters of a test, some of which run in `make test-full` alone: `full` of the cases."""
    return [pytest.param(c, marks=[pytest.mark.full] if c in full else []) for c in cases]


def numeric_vjp(f, x, dy, h=1e-5):
    """Gradient of sum(f(x) * dy) by central differences: for checking the adjoints above."""
    x = np.float64(x)
    out = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[at] = h
        out[at] = np.sum((f(x + step) - f(x - step)) * dy) / (2 * h)
    return out


def assert_close(actual, expected, *, dtype=None, tolerance=None):
    """Same shape, the given dtype, and |actual - expected| <= tolerance max(|expected|, scale).

    The scale is the largest finite |expected|, at least 1: sums cancel, so single elements carry
    the rounding of their largest terms. NaN equals NaN, an infinity itself.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if dtype is not None:
        assert actual.dtype.name == dtype, f"dtype {actual.dtype.name}, expected {dtype}"
    tolerance = tolerance or TOLERANCE[actual.dtype.name]
    scale = np.max(np.abs(expected), initial=1.0, where=np.isfinite(expected))
    np.testing.assert_allclose(
        np.float64(actual), np.float64(expected), rtol=tolerance, atol=tolerance * scale
    )


BAD_OPTIONS = (
    0, -1, -7, 2.5, 10**6, True, None, "text", (), (0,), (-1, 2), (2.5,), (3, 3, 3), float("nan"),
    [None], {}, jnp.ones(2), ((1, -1),), ((1, 2, 3),),
)  # fmt: skip


NOT_ARRAYS = (None, "text", 1.5, 3, [1.0, 2.0], {"x": None}, object(), jnp.float32, (2, 3))


def assert_teaches(error, path):
    assert isinstance(error, (ValueError, TypeError))
    assert error.expected and error.got and error.mend
    assert str(error) == f"{path}: expected {error.expected}, got {error.got}; {error.mend}"


def outcome(call, *args):
    try:
        call(*args)
    except errors.FnnError as error:
        return error
    return None


def refused(call, kind=errors.FnnError):
    """The error of a call, which must be of a kind, and fnn's own."""
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, errors.FnnError)
    return caught.value


def same_when_traced(call, *args):
    """The error of a call that is traced, after checking that it is the same eagerly."""
    traced = outcome(jax.jit(call).trace, *args)
    if traced is not None:
        eager = outcome(call, *args)
        assert str(eager) == str(traced) and type(eager) is type(traced)
    return traced


def same_under_jit(call, *args):
    """The error of a call, after checking that it is the same under jit, where it is traced.

    What is accepted is run without jit as well in `make test-full`: a program for each operation.
    """
    traced = outcome(jax.jit(call).trace, *args)
    if traced is None and QUICK:
        return None
    eager = outcome(call, *args)
    assert str(eager) == str(traced) and type(eager) is type(traced)
    return eager


def asarray(x, dtype=None):
    """As `jnp.asarray`, which compiles a program for each shape; this compiles none."""
    if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(x)):
        return jnp.asarray(x, dtype)
    x = np.asarray(x)
    return jax.device_put(x if dtype is None else x.astype(jnp.dtype(dtype)))


def ones(shape, dtype=np.float32):
    """Ones without a program for their shape, which `jnp.ones` compiles."""
    return jax.device_put(np.ones(shape, dtype))


def shape_mutations(shape):
    for axis in range(len(shape)):
        for change in (1, -1, -shape[axis]):
            yield (*shape[:axis], shape[axis] + change, *shape[axis + 1 :])
    for drop in range(1, len(shape) + 1):
        yield shape[drop:]
    yield (1, *shape)


TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 3e-2, "float16": 3e-3}


def python(code, **env):
    """What another process prints, run from the repository with the same environment."""
    command, env = [sys.executable, "-c", code], os.environ | env
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()
