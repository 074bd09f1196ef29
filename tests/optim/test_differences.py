"""DIFFERENCES.md is whole: every argument and every step in which fnn and optax part is in it."""

import inspect
import pathlib
import re
import warnings

import jax
import numpy as np
import optax
import optax.contrib
import pytest

import fnn
from fnn import optim
from tests.optim.rows import run
from tests.support import asarray, but_full

TEXT = (pathlib.Path(fnn.__file__).parent / "optim/DIFFERENCES.md").read_text()


STEPS = 60


def table(heading):
    """The cells of the table under a heading, without its head."""
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r" \| ", line.strip("| "))] for line in lines[2:]]


def words(cell):
    return set(re.findall(r"\w+", cell.replace("`", "")))


def optaxes(name):
    for module in (optax, optax.contrib):
        if hasattr(module, name):
            return getattr(module, name)
    return None


SHARED = [name for name in optim.__all__ if callable(optaxes(name)) and name != "global_norm"]


def arguments(fn):
    return {name: p.default for name, p in inspect.signature(fn).parameters.items()}


@pytest.mark.parametrize("name", SHARED)
def test_every_argument_that_differs_is_in_the_table(name):
    """Other names, other defaults: exactly those that the table lists."""
    ours, theirs = arguments(getattr(optim, name)), arguments(optaxes(name))
    differ = {
        argument
        for argument in {**ours, **theirs}
        if argument not in ours or argument not in theirs or ours[argument] != theirs[argument]
    }
    listed = [words(row[1]) for row in table("Arguments") if name in words(row[0])]
    assert set().union(*listed) == differ


GIVEN = {  # what has no default, or needs one that is the same
    "add_decayed_weights": dict(weight_decay=0.1),
    "adaptive_grad_clip": dict(clipping=0.01),
    "clip": dict(max_delta=0.5),
    "clip_by_block_rms": dict(threshold=0.5),
    "clip_by_global_norm": dict(max_norm=1.0),
    "ema": dict(decay=0.9),
    "polyak_sgd": dict(),
    "scale": None,
    "scale_by_muon": None,  # of matrices alone
    "trace": dict(decay=0.9),
    "noisy_sgd": None,  # other noise from the same key
    "add_noise": None,
    "sophia": None,  # needs an estimate of the Hessian, each library its own
    "reduce_on_plateau": None,  # of losses, not of gradients
}


WRAPPERS = {"apply_updates", "chain", "lookahead", "masked", "named_chain", "set_to_zero",
            "partition", "sam", "schedule_free", "schedule_free_eval_params", "stateless",
            "lbfgs"}  # fmt: skip


STEPPED = [name for name in SHARED if name not in WRAPPERS and GIVEN.get(name, ()) is not None]


SAMPLE = ("adan", "novograd", "optimistic_adam", "adamw", "fromage")


def both(name):
    """The two transforms, with the same options: optax's defaults, where both have the option."""
    ours, theirs = arguments(getattr(optim, name)), arguments(optaxes(name))
    empty = inspect.Parameter.empty
    given = dict(GIVEN.get(name, {}))
    if theirs.get("learning_rate", 0) in (empty, None):
        given["learning_rate"] = 0.1
    common = {k: v for k, v in theirs.items() if k in ours and v is not empty and v is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(optim, name)(**common | given), optaxes(name)(**given)


@pytest.mark.parametrize("name", but_full(STEPPED, set(STEPPED) - set(SAMPLE)))
def test_60_steps_agree_or_are_in_the_table(name):
    rng = np.random.default_rng(0)
    grads = {"a": rng.normal(size=(STEPS, 4)), "b": rng.normal(size=(STEPS, 2, 3))}
    params = {"a": rng.normal(size=4), "b": rng.normal(size=(2, 3))}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        grads, params = jax.tree.map(asarray, (grads, params))
        extra = {"value": asarray(1.0)} if "polyak" in name else None
        got, want = (
            jax.device_get(jax.jit(lambda tx=tx: run(tx, grads, params, extra))())
            for tx in both(name)
        )
    agree = all(
        np.allclose(got[k], want[k], rtol=1e-7, atol=1e-9 * np.abs(want[k]).max()) for k in got
    )
    assert agree != any(name in words(row[0]) for row in table("Steps"))


def test_every_difference_from_optax_is_run():
    """Each row of the table names a test that stands in this folder."""
    heads = ("| method", "| ---")
    lines = TEXT.split("## Arguments")[0].splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(heads)]
    named = [re.fullmatch(r".*\| `(test_\w+)` \|", row) for row in rows]
    assert len(rows) > 30 and all(named)
    tests = "".join(f.read_text() for f in pathlib.Path(__file__).parents[1].rglob("test_*.py"))
    missing = [m.group(1) for m in named if m and f"def {m.group(1)}(" not in tests]
    assert not missing
