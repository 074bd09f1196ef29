"""Learning rates that decay from the last layer to the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.types import Scalar
from fnn.optim.arithmetic import as_dtype
from fnn.optim.masking import first_matches
from fnn.optim.transform import Transform, each_leaf


@builder
def layerwise_decay(decay: Scalar, layers: Sequence[Any]) -> Transform:
    """Updates times decay^depth: depth is 0 for the last layer, 1 for the one before it, and so on.

    At the end of a chain it multiplies each layer's learning rate and weight decay.

    - `decay`: at least 0; for fine-tuning 0.65 to 0.95 are common.
    - `layers`: patterns of paths from the inputs' side to the outputs', as
      `["embed/*", "block1/*", "block2/*", "head/*"]`; the first that matches a leaf is its layer.
      A stack of n layers, as `repeat` makes, is (pattern, n); its leaves are [n, ...].

    Raises ParamsError for a leaf that no pattern matches, a pattern that matches no leaf, or a leaf
    that is not a stack of n. Howard & Ruder (2018), section 3.2; in this form Clark et al. (2020),
    appendix A.

    >>> from fnn.optim import chain, sgd
    >>> tx = chain(sgd(1.0), layerwise_decay(0.5, ["stem/*", ("blocks/*", 2), "head/*"]))
    >>> g = {"stem": {"w": jnp.ones(1)}, "blocks": {"w": jnp.ones((2, 1))}, "head": {"w": 1.0}}
    >>> updates, _ = tx.update(g, tx.init(g))
    >>> print(updates["stem"]["w"], updates["blocks"]["w"].ravel(), updates["head"]["w"])
    [-0.125] [-0.25 -0.5 ] -1.0
    """
    checks.number("decay", decay, 0.0, float("inf"))
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise _no_layers(layers)
    numbers = [_numbered(layer) for layer in layers]
    patterns = [pattern for pattern, _ in numbers]
    if len(set(patterns)) < len(patterns):
        raise errors.OptionError("patterns that differ", errors.show(layers), "name each once")
    above = [sum(n or 1 for _, n in numbers[i + 1 :]) for i in range(len(numbers))]

    def depth(path, leaf, layer):
        """Scalar, or [n, 1, ...] for a stack."""
        (pattern, n), over = numbers[layer], above[layer]
        if n is None:
            return jnp.asarray(over)
        shape = jnp.shape(leaf)
        if shape[:1] != (n,):
            raise errors.ParamsError(
                f"a stack of {n} layers at {pattern}",
                f"{errors.path_of(path)} {shape}",
                f'give its size as ("{pattern}", {shape[0] if shape else 1})',
            )
        return (over + jnp.arange(n)[::-1]).reshape((n,) + (1,) * (len(shape) - 1))

    def update(grads, opt_state, params=None, **extra):
        masks = first_matches(patterns, grads)
        layer_of = jax.tree.map(lambda *own: own.index(True), *masks.values())
        depths = jax.tree_util.tree_map_with_path(depth, grads, layer_of)

        def rule(p, g, depth):
            factor = as_dtype(decay, depth.dtype) ** depth
            return (g * jnp.broadcast_to(factor, g.shape).astype(g.dtype),)

        floats = jax.tree.map(lambda d: d.astype(jnp.float32), depths)
        (updates,) = each_leaf(rule, grads, None, (floats,), stacks=False)
        return updates, opt_state

    return Transform(lambda params: (), update)


def _numbered(layer: Any) -> tuple[str, int | None]:
    if isinstance(layer, str):
        return layer, None
    if not (isinstance(layer, tuple) and len(layer) == 2 and isinstance(layer[0], str)):
        raise _no_layers(layer)
    return layer[0], checks.count("the size of a stack", layer[1])


def _no_layers(got: Any) -> errors.OptionError:
    return errors.OptionError(
        "layers to be a list of patterns, or (pattern, n) for a stack",
        errors.show(got),
        'pass one, as ["embed/*", ("blocks/*", 12), "head/*"]',
    )
