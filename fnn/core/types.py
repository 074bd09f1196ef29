"""Names for what goes through signatures."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Tree: TypeAlias = Any  # any pytree of arrays: params, state, gradients, a batch
Key: TypeAlias = jax.Array  # one random key, typed (or of the older uint32 form)
Scalar: TypeAlias = float | jax.Array  # a plain number, or one that is traced
Schedule: TypeAlias = Callable[[Any], Any]  # from a count of steps to a Scalar
Dtype: TypeAlias = Any  # what `jnp.dtype` takes, as jnp.bfloat16
Shape: TypeAlias = tuple[int, ...]
