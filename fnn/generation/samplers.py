"""From logits to a token: what may be drawn, and the draw.

Each filter gives back logits, with -inf where nothing may be drawn, so that they follow one another
in any order. All compute in float32 or wider.
"""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.core.dtypes import wide
from fnn.core.types import Dtype, Key, Shape

NONE = -1  # no token: of no vocabulary, so that no table takes it
TINY = float(np.finfo(np.float32).tiny)


@errors.named
def top_k(logits: Any, k: Any) -> jax.Array:
    """The k largest logits; -inf elsewhere: [..., V] -> [..., V] (Fan, Lewis & Dauphin, 2018).

    - `k`: an int, or integers [...]; at most V. Of equal logits the first ones stay. A k that is
      traced costs a whole sort.

    Raises OptionError for a k outside 1 to V, where it is known; a traced one beyond V keeps all.

    >>> print(top_k(jnp.array([1.0, 3.0, 2.0]), 2))
    [-inf   3.   2.]
    """
    logits = _wide(logits)
    size = logits.shape[-1]
    setting("top_k", k, logits.shape[:-1], 1, size, jnp.integer, f"the {size} logits")
    if isinstance(k, (int, np.integer)):
        order = jax.lax.top_k(logits, int(k))[1]
        return _only(logits, order, jnp.ones(order.shape, bool))
    order = _descending(logits)
    return _only(logits, order, jnp.arange(size, dtype=jnp.int32) < _of_rows(k, logits, jnp.int32))


@errors.named
def top_p(logits: Any, p: Any) -> jax.Array:
    """The fewest of the likeliest whose probabilities sum to p, or more; -inf elsewhere.

        i stays where the probabilities above that of i sum to less than p

    [..., V] -> [..., V]. The likeliest always stays (Holtzman et al., 2020).

    - `p`: a number, or numbers [...], in [0, 1]; 1 keeps all.

    >>> print(top_p(jnp.log(jnp.array([0.2, 0.5, 0.3])), 0.6) > -jnp.inf)
    [False  True  True]
    """
    logits = _wide(logits)
    setting("top_p", p, logits.shape[:-1], 0, 1)
    order = _descending(logits)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
    above = jnp.cumsum(probabilities, axis=-1) - probabilities
    p = _of_rows(p, logits)
    first = jnp.arange(logits.shape[-1]) == 0
    return _only(logits, order, (above < p) | (p >= 1) | first)


@errors.named
def min_p(logits: Any, p: Any) -> jax.Array:
    """Those at least p times as likely as the likeliest; -inf elsewhere: [..., V] -> [..., V].

    - `p`: a number, or numbers [...], in [0, 1]; 0 keeps all (Nguyen et al., 2024).

    >>> print(min_p(jnp.log(jnp.array([0.2, 0.5, 0.3])), 0.5) > -jnp.inf)
    [False  True  True]
    """
    logits = _wide(logits)
    setting("min_p", p, logits.shape[:-1], 0, 1)
    least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(_of_rows(p, logits))
    return jnp.where(logits < least, -jnp.inf, logits)


@errors.named
def penalize(logits: Any, seen: Any, penalty: Any) -> jax.Array:
    """Logits of tokens that were seen, divided by the penalty; multiplied by it if negative.

    [..., V] -> [..., V] (Keskar et al., 2019, section 4.1, with the negative ones mended).

    - `seen`: booleans [..., V].
    - `penalty`: a number, or numbers [...], above 0; above 1 repeats less.

    >>> print(penalize(jnp.array([2.0, -2.0, 2.0]), jnp.array([True, True, False]), 2.0))
    [ 1. -4.  2.]
    """
    logits = _wide(logits)
    setting("repetition_penalty", penalty, logits.shape[:-1], TINY, np.inf)
    by = _of_rows(penalty, logits)
    return jnp.where(seen, jnp.where(logits > 0, logits / by, logits * by), logits)


@errors.named
def draw(key: Key, logits: Any) -> jax.Array:
    """One of V by softmax(logits): [..., V] -> integers [...].

    >>> print(draw(jax.random.key(0), jnp.array([-jnp.inf, 0.0])))
    1
    """
    # The default mode never draws what is e^16 times less likely than the first, though together
    # the rare words of a vocabulary have a share.
    return jax.random.categorical(key, _wide(logits), mode="high")


class Settings(NamedTuple):
    """How a token is chosen; see `fnn.generate`. None leaves a filter out."""

    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    repetition_penalty: Any = None

    @property
    def greedy(self) -> bool:
        """Whether it is known that nothing is drawn."""
        return isinstance(self.temperature, (int, float)) and self.temperature == 0

    def checked(self, rows: Shape) -> "Settings":
        """The same, once each is a number or has one for each row."""
        setting("temperature", self.temperature, rows, 0, np.inf)
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                setting(name, getattr(self, name), rows, 0, 1)
        if self.top_k is not None:
            setting("top_k", self.top_k, rows, 1, np.inf, jnp.integer)
        if self.repetition_penalty is not None:
            setting("repetition_penalty", self.repetition_penalty, rows, TINY, np.inf)
        return self

    def spread(self, n: int) -> "Settings":
        """The same for n samples of each row: [...] -> [..., n]."""

        def each(value):
            if value is None or not jnp.shape(value):
                return value
            return jnp.broadcast_to(jnp.asarray(value)[..., None], (*jnp.shape(value), n))

        return Settings(*map(each, self))


def settings_of(options: dict[str, Any]) -> Settings:
    """The settings of options by name."""
    for name in options:
        if name not in Settings._fields:
            wanted = f"options among {errors.names(Settings._fields)}"
            raise errors.InputError(wanted, name, "see fnn.generate")
    return Settings(**options)


def choose(key: Key | None, logits: jax.Array, settings: Settings, seen: Any = None) -> jax.Array:
    """The next token by the settings: logits [..., V] -> int32 [...]."""
    logits = _wide(logits)
    if seen is not None:
        logits = penalize(logits, seen, settings.repetition_penalty)
    most = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if settings.greedy:
        return most
    assert key is not None
    heat = _of_rows(settings.temperature, logits)
    logits = logits / jnp.where(heat > 0, heat, 1)
    for keep, by in (
        (top_k, settings.top_k),
        (top_p, settings.top_p),
        (min_p, settings.min_p),
    ):
        logits = logits if by is None else keep(logits, by)
    return jnp.where(heat[..., 0] > 0, draw(key, logits).astype(jnp.int32), most)


def setting(
    name: str, value: Any, rows: Shape, low: float, high: float,
    kind: Any = jnp.number, span: str = "",
) -> None:  # fmt: skip
    """A number in [low, high], or one for each row; tracers pass."""
    span = f"at most {span}" if span else f"in [{low:g}, {high:g}]"
    what = "an int" if kind is jnp.integer else "a number"
    wanted = f"{name} to be {what} {span}, or one for each row {rows}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number and not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        raise errors.OptionError(wanted, errors.show(value), "pass one number, or an array")
    if not jnp.issubdtype(jnp.result_type(value), kind):
        raise errors.OptionError(wanted, errors.show(value), "pass one number, or an array")
    if jnp.shape(value) not in ((), rows):
        raise errors.ShapeError(wanted, errors.show(value), "give each row one")
    if isinstance(value, jax.core.Tracer):
        return
    values = np.asarray(value)
    wrong = values[~((values >= low) & (values <= high) & (values < np.inf))]  # NaN too
    if wrong.size:
        raise errors.OptionError(wanted, f"{wrong.ravel()[0]}", "pass a number in that range")


def _wide(logits: Any) -> jax.Array:
    checks.array(logits, 1, "[..., V]", "logits")
    logits = jnp.asarray(logits)
    return logits.astype(wide(logits.dtype))


def _of_rows(value: Any, logits: jax.Array, dtype: Dtype = None) -> jax.Array:
    """A setting of one number, or of one for each row, as [..., 1], in the dtype of the logits."""
    value = jnp.asarray(value).astype(dtype or logits.dtype)
    return jnp.broadcast_to(value, logits.shape[:-1])[..., None]


def _descending(logits: jax.Array) -> jax.Array:
    return jnp.argsort(logits, axis=-1, descending=True)


def _only(logits: jax.Array, order: jax.Array, kept: jax.Array) -> jax.Array:
    """The logits of numbers `order` [..., k] where `kept`; -inf elsewhere."""
    none = jnp.zeros(logits.shape, bool)
    kept = jnp.put_along_axis(none, order, kept, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


def logits_of(y: Any, rows: Shape) -> jax.Array:
    """What a network or cell gave, checked to be logits [..., V] in a wide dtype."""
    good = hasattr(y, "shape") and y.shape[:-1] == rows and len(y.shape) == len(rows) + 1
    if not good or not jnp.issubdtype(y.dtype, jnp.floating):
        wanted = f"floating logits [..., V] for each token, {(*rows, 'V')}".replace("'", "")
        raise errors.ShapeError(wanted, errors.show(y), "end the network with a layer of V values")
    return y.astype(wide(y.dtype))
