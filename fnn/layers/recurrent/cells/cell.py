"""Recurrent cells: one step of a recurrent network, (carry, x) -> (carry, y).

A cell is a layer whose apply is a step of `jax.lax.scan`. `carry` is its memory; None stands for
the first one, so a cell is initialized by `cell.init(key, None, x)`, with x of one step. `fnn.rnn`
runs a cell along time.

All cells here multiply x by `kernel` and h by `recurrent_kernel`, with the gates side by side in
the last axis. The rest is elementwise, in float32 or wider. For the LSTM and the GRU its derivative
is written by hand: the scan then keeps just one factor per product for the backward pass, whose
time is that of reading what was kept.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn.core import checks, trees
from fnn.core.declarations import Derived, Param
from fnn.core.layer import Layer, leaf
from fnn.core.names import folded
from fnn.core.shapes import of_rank
from fnn.core.types import Key, Scalar, Tree
from fnn.initializers import zeros
from fnn.layers.dropout import drop_where

sigmoid = jax.nn.sigmoid


class Inits:
    """The initializers of a cell's weights, checked once."""

    def __init__(
        self, use_bias: bool, kernel_init: Callable, recurrent_init: Callable, bias_init: Callable
    ):
        checks.initializer("kernel_init", kernel_init)
        checks.initializer("recurrent_init", recurrent_init)
        checks.initializer("bias_init", bias_init)
        self.kernel, self.recurrent = kernel_init, recurrent_init
        self.bias = bias_init if use_bias else None

    def declare(self, x: Any, gates: int, features: int, size: int) -> dict[str, Any]:
        """`kernel`, `recurrent_kernel` and `bias` for this many gates and an h of `size` values."""
        checks.array(x, 1, "[..., C]")
        n, dtype, axes = gates * features, x.dtype, ("hidden", "gates")
        blocks = Param((size, features), self.recurrent, dtype, "kernel", axes, (gates,))
        params: dict[str, Any] = {
            "kernel": Param((x.shape[-1], n), self.kernel, dtype, "kernel", ("in", "gates")),
            "recurrent_kernel": Derived(_side_by_side, blocks, axes=axes),
        }
        if self.bias is not None:
            params["bias"] = Param((n,), self.bias, dtype, "bias", ("gates",))
        return params


def _side_by_side(blocks: jax.Array) -> jax.Array:
    """[gates, H, H] -> [H, gates H]."""
    return jnp.concatenate(list(blocks), axis=-1)


def bias_of(params: Mapping, x: jax.Array) -> jax.Array | int:
    return of_rank(params["bias"], x.ndim) if "bias" in params else 0


def cell_of(
    name: str,
    sizes: Mapping[str, int],
    declare: Callable[[Any], dict],
    step: Callable[..., dict],
    recurrent_dropout: Scalar | None,
    learned_carry: bool,
) -> Layer:
    """The cell of `step(params, x, h, old) -> new`, whose carry is made of [..., size] arrays.

    - `sizes`: of the arrays of the carry, by name; the last is h. A single one is the carry itself.
    - `declare(x)`: its params.
    - `old`, `new`: the carry by name; `h` is old["h"] under the mask of recurrent dropout.
    """
    if recurrent_dropout is not None:
        checks.number("recurrent_dropout", recurrent_dropout, 0.0, 1.0)

    def first(params, x, *, key=None, train=False):
        """The first carry for an x of one step."""
        lead, kept = x.shape[:-1], {}
        if learned_carry:
            wanted = {f"first_{p}": jax.ShapeDtypeStruct((n,), x.dtype) for p, n in sizes.items()}
            trees.check_same("params", {p: params[p] for p in wanted if p in params}, wanted)
        for part, size in sizes.items():
            start = params[f"first_{part}"] if learned_carry else jnp.zeros((size,), x.dtype)
            kept[part] = jnp.broadcast_to(start, (*lead, size))
        if recurrent_dropout is None:
            return _packed(kept)
        return {"carry": _packed(kept), "mask": keep_mask(kept["h"], recurrent_dropout, key, train)}

    def specs(carry, x):
        params = declare(x)
        if learned_carry:
            for p, n in sizes.items():
                params[f"first_{p}"] = Param((n,), zeros, x.dtype, "carry", ("hidden",))
        if carry is not None:
            lead = x.shape[:-1]
            kept = {p: jax.ShapeDtypeStruct((*lead, n), x.dtype) for p, n in sizes.items()}
            wanted = _packed(kept)
            if recurrent_dropout is not None:
                mask = jax.ShapeDtypeStruct(kept["h"].shape, jnp.bool_)
                wanted = {"carry": wanted, "mask": mask}
            check_carry(carry, wanted)
        return params, {}

    def apply(params, state, carry, x, *, key, train):
        carry = first_or(carry, first, params, x, key, train)
        kept = carry if recurrent_dropout is None else carry["carry"]
        old = dict(zip(sizes, kept if len(sizes) > 1 else (kept,), strict=True))
        h = old["h"]
        if recurrent_dropout is not None and train:
            h = drop_where(carry["mask"], h, recurrent_dropout)
        new = step(params, x, h, old)
        packed = _packed(new)
        carry = packed if recurrent_dropout is None else {**carry, "carry": packed}
        return (carry, new["h"]), state

    return leaf(name, specs, apply, first)


def _packed(kept: Mapping[str, Any]) -> Tree:
    """The carry of arrays by name."""
    return tuple(kept.values()) if len(kept) > 1 else kept["h"]


def first_or(
    carry: Tree, first: Callable, params: Tree, x: Any, key: Key | None, train: bool
) -> Tree:
    """The carry; where it is None, the first one, drawn from a key of its own."""
    if carry is not None:
        return carry
    own = None if key is None else folded(key, "carry")
    return first(params, x, key=own, train=train)


def keep_mask(x: Any, rate: Scalar, key: Any, train: bool) -> jax.Array:
    """Where x is kept for a whole sequence; everywhere in evaluation."""
    if not train:
        return jnp.ones(x.shape, bool)
    checks.need_key(key)
    return jax.random.bernoulli(key, 1 - jnp.asarray(rate, jnp.float32), x.shape)


def check_carry(carry: Tree, wanted: Tree) -> None:
    """Refuse a carry that is not like the first one, in structure, shapes and dtypes."""
    mend = "take the carry that came out for inputs like x, or None for the first one"
    trees.alike("carry", carry, "the first one for this x", wanted, mend)
