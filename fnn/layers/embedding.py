"""Learned arrays: rows looked up by integers, and whole arrays."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.declarations import Param
from fnn.core.dtypes import wide
from fnn.core.layer import Layer, leaf
from fnn.core.origins import builder
from fnn.core.types import Dtype
from fnn.initializers import variance_scaling, zeros


@builder
def embedding(
    num_embeddings: int,
    features: int,
    *,
    embedding_init=variance_scaling(1.0, "fan_out", "normal"),
    dtype: Dtype = jnp.float32,
) -> Layer:
    """One learned vector per integer, y = embedding[x]: [...] integers -> [..., features].

    - `num_embeddings`: how many vectors; x lies in 0 ... num_embeddings - 1.
    - `features`: the size of a vector.
    - `embedding_init`: an initializer; variance 1 / features gives vectors of length about 1, and
      logits h @ embedding.T of the variance of h.
    - `dtype`: of the vectors, since integers do not imply one.

    An integer outside the range, or negative, is an InputError where x is concrete, also inside
    `rnn`, `ensemble` or `remat`. Where x is traced (under `jit`, `vmap`) its values are unknown,
    and the vector is NaN: the nearest legal one, which indexing in JAX gives, would hide the
    mistake. Gradients of vectors that are looked up many times are summed in float32 or wider.

    Params: `embedding` [num_embeddings, features]. Raises DtypeError for an x of other dtype.

    >>> import jax, jax.numpy as jnp, fnn
    >>> @fnn.compose(embed=fnn.embedding(256, 16), hidden=fnn.dense(16))
    ... def net(f, x):  # [..., T] bytes; the vectors serve as the last layer's kernel too
    ...     h = jnp.tanh(f.hidden(f.embed(x)))
    ...     return h @ f.embed.params["embedding"].T  # [..., T, 256] logits
    >>> x = jnp.zeros((2, 5), jnp.uint8)
    >>> params, _ = net.init(jax.random.key(0), x)
    >>> net(params, x).shape
    (2, 5, 256)
    """
    num_embeddings = checks.count("num_embeddings", num_embeddings)
    features = checks.count("features", features)
    checks.initializer("embedding_init", embedding_init)
    dtype = checks.floating("dtype", dtype)

    def specs(x):
        checks.rank(x, 0, "[...]")
        if not jnp.issubdtype(x.dtype, np.integer):
            raise errors.DtypeError(
                "x of an integer dtype", f"x {errors.show(x)}", "cast: x.astype(jnp.int32)"
            )
        shape = num_embeddings, features
        table = Param(shape, embedding_init, dtype, "embedding", ("vocabulary", "out"))
        return {"embedding": table}, {}

    def apply(params, state, x, *, key, train):
        _check_range(x, num_embeddings)
        if jnp.iinfo(x.dtype).bits < 32:
            x = x.astype(jnp.int32)  # where num_embeddings may not fit
        outside = (x < 0) | (x >= num_embeddings)
        row = jnp.where(outside, num_embeddings, x.astype(jnp.int32))
        table = params["embedding"]
        wider = table.astype(wide(table.dtype))  # so that the gradient's sum is wide
        return jnp.take(wider, row, axis=0, mode="fill").astype(table.dtype), state

    return leaf("embedding", specs, apply)


def _check_range(x: jax.Array, n: int) -> None:
    """Refuse values outside 0 ... n - 1, where they are known."""
    if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable or x.size == 0:
        return
    values = np.asarray(x)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= n:
        raise errors.InputError(
            f"integers in 0 ... {n - 1}",
            f"x {errors.show(x)} in {low} ... {high}",
            "raise num_embeddings, or mend the integers (there is no counting from the end)",
        )


@builder
def parameter(
    shape: tuple[int, ...], init=zeros, *, dtype: Dtype = jnp.float32, kind: str = "value"
) -> Layer:
    """A layer without inputs whose output is a learned array: `f.pos()` -> [*shape].

    - `shape`: of the array; () is one number.
    - `init`: an initializer; zeros, so that adding the array changes nothing at first.
    - `dtype`: of the array, since there is no input to imply one.
    - `kind`: guides decay masks, summaries and shardings, as in `fnn.Param`. The default is a kind
      of its own, which no mask for kernels includes.

    Params: `value` [*shape]. Raises OptionError.

    >>> import jax, jax.numpy as jnp, fnn
    >>> @fnn.compose(embed=fnn.dense(8), pos=fnn.parameter((5, 8), fnn.initializers.normal(0.02)))
    ... def net(f, x):  # [..., 5, C]
    ...     return f.embed(x) + f.pos()
    >>> params, _ = net.init(jax.random.key(0), (2, 5, 3))
    >>> params["pos"]["value"].shape, net(params, jnp.ones((2, 5, 3))).shape
    ((5, 8), (2, 5, 8))
    """
    if not isinstance(shape, tuple):
        raise errors.OptionError(
            "shape to be a tuple of ints", errors.show(shape), "write (n,) for one axis"
        )
    shape = tuple(checks.count("shape", size, least=0) for size in shape)
    checks.initializer("init", init)
    dtype = checks.floating("dtype", dtype)
    if not isinstance(kind, str):
        raise errors.OptionError("kind to be a string", errors.show(kind), 'pass kind="bias"')

    def specs():
        return {"value": Param(shape, init, dtype, kind)}, {}

    def apply(params, state, *, key, train):
        return jnp.asarray(params["value"]), state

    return leaf("parameter", specs, apply)
