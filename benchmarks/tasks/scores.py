"""Attention over large scores: all of them at once, or some examples, or queries, at a time.

On a CPU fnn takes what fits the caches at a time, and makes it again for the gradient; `whole` is
what it does elsewhere. Each case is one call: forward, or forward and the gradients by q, k and v.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.gradients import norms, pulled
from benchmarks.task import Call, Contender, Goal, Task


class Case(NamedTuple):
    """Queries, keys and values [batch, length, heads, size]."""

    batch: int
    length: int
    heads: int
    size: int
    causal: bool
    backward: bool


SHAPES = {
    "16 MiB of short texts": (64, 128, 4, 32),
    "16 MiB": (16, 256, 4, 32),
    "64 MiB": (8, 512, 8, 64),
    "64 MiB of long texts": (2, 1024, 8, 16),
}
CASES = {
    f"{name}{' of the past' * causal}{' forward' * (not backward)}": Case(*shape, causal, backward)
    for name, shape in SHAPES.items()
    for causal in (False, True)
    for backward in (False, True)
}


def inputs(case: Case) -> list[Any]:
    """q, k, v, and the gradient by y."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = case.batch, case.length, case.heads, case.size
    return [rng.normal(size=shape).astype("f4") for _ in range(4)]


def jitted(attend: Any, case: Case) -> Call:
    import jax

    args = jax.device_put(inputs(case))
    call = jax.jit(pulled(attend) if case.backward else attend)
    return lambda: call(*args[: 4 if case.backward else 3])


def fnn(case: Case) -> Call:
    """fnn.layers.attention.products.attend, as in `fnn.attention`"""
    from fnn.layers.attention.products import attend
    from fnn.layers.attention.rows import Rule

    return jitted(lambda q, k, v: attend(q, k, v, rule=Rule(case.causal)), case)


def whole(case: Case) -> Call:
    """the same with block=length: all scores at once"""
    from fnn.layers.attention.products import attend
    from fnn.layers.attention.rows import Rule

    rule, block = Rule(case.causal), case.length
    return jitted(lambda q, k, v: attend(q, k, v, rule=rule, block=block), case)


def jax_nn(case: Case) -> Call:
    """jax.nn.dot_product_attention"""
    import jax

    def attend(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=case.causal)

    return jitted(attend, case)


def torch(case: Case) -> Call:
    """torch.nn.functional.scaled_dot_product_attention"""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v, g = (torch.from_numpy(x).transpose(1, 2) for x in inputs(case))
    args = [x.detach().requires_grad_(case.backward) for x in (q, k, v)]

    def call():
        y = scaled_dot_product_attention(*args, is_causal=case.causal)
        if not case.backward:
            return y.transpose(1, 2)
        found = y, *torch.autograd.grad(y, args, g)
        return tuple(x.detach().transpose(1, 2) for x in found)

    return call


def numbers(contender: Contender, case: Case) -> list[float]:
    """Norms of the outputs and of the gradients."""
    return norms(contender(case)())


TASK = Task(
    title="Attention over scores of 16 to 64 MiB",
    cases=CASES,
    contenders={"fnn": fnn, "whole": whole, "jax_nn": jax_nn, "torch": torch},
    baseline="whole",
    goals=tuple(
        Goal(f"{name}: at most 1.05 x the scores at once", name, 1.05, ("whole",)) for name in CASES
    ),
    check=numbers,
    rounds=7,
)
