"""The training step of each example, and the shapes that it is called with."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from unittest import mock

import jax
from jax.core import eval_jaxpr

import fnn

EXAMPLES = Path(__file__).parents[1] / "examples"
MAKERS = "step", "joint_step"  # of fnn.train
# Without a step of fnn.train, or with one that another example has, or one for many devices.
WITHOUT = {
    "augmentations",
    "distributed",
    "dryrun",
    "gallery",
    "gradients",
    "long_run",
    "optimizers",
    "pretrained",
    "quantization",
}
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - WITHOUT)


class Reached(Exception):
    """A step was called, with (step, train_state, batch)."""


def step_of(name: str):
    """(step, train_state, batch) of an example, the latter two as shapes: its first step.

    The example runs, as by its command, until it calls the step. Of runs side by side it is the
    step of one.
    """
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("sys.argv", [name, "--out", folder]),
        mock.patch.multiple(fnn.train, **{maker: _stopping(maker) for maker in MAKERS}),
    ):
        spec.loader.exec_module(module)
        try:
            module.main()
        except Reached as reached:
            return reached.args
    raise ValueError(f"{name} calls no step of fnn.train")


def _stopping(maker: str):
    """A maker of steps that end the program when they are called."""
    make = getattr(fnn.train, maker)

    def made(*args, **options):
        step = make(*args, **options)

        def stop(train_state, batch):
            shapes = jax.tree.map(_shape, (train_state, batch))
            raise Reached(*_alone(step, *shapes))

        return stop

    return made


def _alone(step, train_state, batch):
    """The same, with what the step takes from a run that is being traced, such as its learning rate
    among many side by side, beside the training state."""
    closed = jax.make_jaxpr(step)(train_state, batch)
    if not any(isinstance(x, jax.core.Tracer) for x in closed.consts):
        return step, train_state, batch

    def with_given(held, batch):
        train_state, given = held
        leaves = jax.tree.leaves((train_state, batch))
        after = eval_jaxpr(closed.jaxpr, given, *leaves)
        n = len(jax.tree.leaves(train_state))
        return (jax.tree.unflatten(jax.tree.structure(train_state), after[:n]), given), after[n:]

    return with_given, (train_state, jax.tree.map(_shape, closed.consts)), batch


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x
