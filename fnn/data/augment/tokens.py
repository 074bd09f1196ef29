"""Tokens of a text masked, to be predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.origins import builder
from fnn.core.shapes import as_array
from fnn.core.types import Key, Scalar
from fnn.data.augment.contract import f32


@builder
def mask_tokens(
    rate: Scalar,
    mask_token: int,
    num_tokens: int,
    *,
    masked: Scalar = 0.8,
    replaced: Scalar = 0.1,
    special: Sequence[int] = (),
) -> Callable[[Key, jax.Array], tuple[jax.Array, jax.Array]]:
    """Choose tokens to be predicted, and hide most of them, as BERT learns: [..., T] -> [..., T].

    Each token is chosen with probability `rate`. A chosen one becomes `mask_token` with probability
    `masked`, any of the tokens with probability `replaced`, and stays as it is otherwise.
    Devlin et al. (2019), section 3.1.

    - `rate`: in [0, 1], 0.15 in the paper.
    - `mask_token`: the number of the token that hides others.
    - `num_tokens`: how many there are; a replacement is drawn from 0 ... num_tokens - 1.
    - `masked`, `replaced`: shares of the chosen tokens; their sum is at most 1. `masked=1,
      replaced=0` hides all.
    - `special`: tokens that are never chosen, such as padding.

    Returns a function `(key, tokens) -> (tokens, chosen)`. Since the loss needs to know which were
    chosen, this one is not `(key, x) -> x`: it stands in a loss function of your own, and as each
    token draws for itself, takes a batch with one key. Numbers may be traced.
    The function raises DtypeError for tokens that are not integers.

    >>> from fnn.data import augment
    >>> hide = augment.mask_tokens(0.15, mask_token=1, num_tokens=100, special=[0, 1])
    >>> def loss_fn(params, state, batch, key):
    ...     own, key = jax.random.split(key)
    ...     x, chosen = hide(own, batch["tokens"])                          # [B, T]
    ...     logits, state = net.apply(params, state, x, key=key, train=True)
    ...     losses = fnn.losses.softmax_cross_entropy(logits, batch["tokens"], mask=chosen)
    ...     return fnn.losses.mean(losses, chosen), (state, {})
    >>> x, chosen = hide(jax.random.key(0), jnp.full((100, 100), 7))
    >>> print(f"{chosen.mean():.2f} chosen, {(x == 1).sum() / chosen.sum():.2f} of them hidden")
    0.15 chosen, 0.80 of them hidden
    """
    for name, value in (("rate", rate), ("masked", masked), ("replaced", replaced)):
        checks.number(name, value, 0.0, 1.0)
    if not any(isinstance(share, jax.core.Tracer) for share in (masked, replaced)):
        total = float(np.asarray(masked) + np.asarray(replaced))
        if total > 1 + 1e-6:
            mend = "the rest stay as they are"
            raise errors.OptionError("masked + replaced of at most 1", f"{total:g}", mend)
    num_tokens = checks.count("num_tokens", num_tokens)
    mask_token = _token("mask_token", mask_token, num_tokens)
    never = [_token("special", token, num_tokens) for token in np.ravel(special).tolist()]

    def mask_tokens(key: Key, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        with errors.within("mask_tokens"):
            key, x = checks.typed_key(key), as_array(tokens, "tokens")
            checks.rank(x, 1, "[..., T]", "tokens")
            if not jnp.issubdtype(x.dtype, jnp.integer) or num_tokens - 1 > jnp.iinfo(x.dtype).max:
                raise errors.DtypeError(
                    f"integers that hold {num_tokens} tokens",
                    f"tokens {errors.show(x)}",
                    "cast: tokens.astype(jnp.int32)",
                )
        which, how, new = jax.random.split(key, 3)
        chosen = jax.random.bernoulli(which, f32(rate), x.shape)
        for token in never:
            chosen &= x != token
        u = jax.random.uniform(how, x.shape, jnp.float32)
        other = jax.random.randint(new, x.shape, 0, num_tokens, jnp.int32).astype(x.dtype)
        other = jnp.where(u < f32(masked) + f32(replaced), other, x)
        hidden = jnp.where(u < f32(masked), jnp.asarray(mask_token, x.dtype), other)
        return jnp.where(chosen, hidden, x), chosen

    return mask_tokens


def _token(name: str, value: int, num_tokens: int) -> int:
    token = checks.count(name, value, least=0)
    if token >= num_tokens:
        mend = "count it among them, or correct it"
        raise errors.OptionError(f"{name} below num_tokens={num_tokens}", f"{token}", mend)
    return token
