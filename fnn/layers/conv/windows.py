"""Windows that slide over the spatial axes of [..., H, W, C], for convolutions and pools."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors

Padding = str | int | Sequence[tuple[int, int]]

MODES = ("SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT")
AXES = ("height", "width", "depth")


def names(n: int) -> tuple[str, ...]:
    """The logical names of n spatial axes."""
    return (*AXES[:n], *(f"space{i}" for i in range(len(AXES), n)))


class Window(NamedTuple):
    """A checked window: per spatial axis its size, stride and dilation, and the padding."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any  # one of MODES, or one (low, high) pair per spatial axis

    @property
    def spans(self) -> tuple[int, ...]:
        """The length that the window covers along each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilation, strict=True))

    def pads(self, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Values added before and after each spatial axis of these sizes."""
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "VALID":
            return ((0, 0),) * len(self.size)
        if self.padding == "CAUSAL":
            return tuple((span - 1, 0) for span in self.spans)
        pads = []
        for n, stride, span in zip(spatial, self.strides, self.spans, strict=True):
            reach = (-(-n // stride) - 1) * stride + span  # from the first output to the last
            total = span - 1 if stride == 1 else max(reach - n, 0)
            pads.append((total // 2, total - total // 2))
        return tuple(pads)

    def outputs(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """How many positions the window takes along each spatial axis of these sizes."""
        axes = zip(spatial, self.pads(spatial), self.spans, self.strides, strict=True)
        return tuple((n + low + high - span) // s + 1 for n, (low, high), span, s in axes)


def window(
    name: str, size: Any, strides: Any, padding: Any, dilation: Any = 1, modes=MODES
) -> Window:
    """The options of a layer as a Window, or an OptionError that names a wrong one."""
    size = checks.counts(name, size)
    strides = checks.counts("strides", strides, len(size))
    dilation = checks.counts("dilation", dilation, len(size))
    if isinstance(padding, (int, np.integer)) and not isinstance(padding, bool):
        padding = ((padding, padding),) * len(size)
    if isinstance(padding, str):
        checks.choice("padding", padding, modes)
        return Window(size, strides, dilation, padding)
    pairs = tuple(padding) if isinstance(padding, (tuple, list)) else ()
    if len(pairs) != len(size) or not all(isinstance(p, (tuple, list)) for p in pairs):
        raise errors.OptionError(
            f"padding to be one of {errors.names(modes)}, an int or {len(size)} (low, high) pairs",
            errors.show(padding),
            "pass one of these",
        )
    pairs = tuple(checks.counts("padding", p, 2, least=0) for p in pairs)
    return Window(size, strides, dilation, pairs)


def check_input(x: Any, window: Window) -> None:
    """Refuse an input with too few axes, or too small for the window."""
    n = len(window.size)
    checks.array(x, n + 1, f"[..., {n} spatial axes, C]")
    spatial = x.shape[-n - 1 : -1]
    for size, span, (low, high) in zip(spatial, window.spans, window.pads(spatial), strict=True):
        known = isinstance(size, int)  # a symbolic size cannot be checked yet
        if known and size + low + high < span:
            raise errors.ShapeError(
                f"spatial axes of at least {span - low - high} (the window reaches over {span})",
                f"x {x.shape}",
                "use a smaller window, padding='SAME', or a larger input",
            )
        if known and window.padding == "REFLECT" and max(low, high) >= max(size, 1):
            raise errors.ShapeError(
                f"spatial axes of at least {max(low, high) + 1}, to be reflected",
                f"x {x.shape}",
                "use padding='SAME', or a larger input",
            )
        if known and window.padding == "CIRCULAR" and max(low, high) and size == 0:
            raise errors.ShapeError(
                "spatial axes of at least 1, to wrap around", f"x {x.shape}", "use a larger input"
            )


def check_image(x: Any, n: int) -> None:
    """Refuse an input with too few axes, or without pixels."""
    checks.array(x, n + 1, f"[..., {n} spatial axes, C]")
    if 0 in x.shape[-n - 1 : -1]:
        raise errors.ShapeError("spatial axes of at least 1", f"x {x.shape}", "use a larger input")


def over_images(fn: Callable[[jax.Array], jax.Array], x: jax.Array, n: int) -> jax.Array:
    """Apply `fn` to [B, *spatial, C] with `n` spatial axes, whatever the leading axes."""
    lead = x.shape[: x.ndim - n - 1]
    y = fn(x.reshape(math.prod(lead), *x.shape[x.ndim - n - 1 :]))
    return y.reshape(*lead, *y.shape[1:])


def pad(x: jax.Array, window: Window) -> tuple[jax.Array, tuple[tuple[int, int], ...]]:
    """Pad [B, H, W, C] for "CIRCULAR" and "REFLECT"; return the pads that are left for zeros."""
    pads = window.pads(x.shape[1:-1])
    mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}.get(str(window.padding))
    if mode is None:
        return x, pads
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), mode), ((0, 0),) * len(pads)


def strided(
    x: jax.Array, offset: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> jax.Array:
    """The values at `offset` in every window of [B, H, W, C]: [B, H', W', C]."""
    starts, limits = [0], [x.shape[0]]
    for start, n, span in zip(offset, x.shape[1:-1], spans, strict=True):
        starts.append(start)
        limits.append(start + n - span + 1)
    return jax.lax.slice(x, (*starts, 0), (*limits, x.shape[-1]), (1, *strides, 1))


def interleaved(
    image: Callable[[tuple[int, ...]], jax.Array], strides: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """The image [B, *sizes, C] whose values at `first`, first + strides ... are `image(first)`."""
    n = len(strides)

    def along(first):
        axis = len(first)
        if axis == n:
            return image(first)
        return jnp.stack([along((*first, i)) for i in range(strides[axis])], axis + 2)

    x = along(())
    counts = zip(x.shape[1 : 2 * n : 2], strides, strict=True)
    x = x.reshape(x.shape[0], *(count * stride for count, stride in counts), x.shape[-1])
    return jax.lax.slice(x, (0,) * x.ndim, (x.shape[0], *sizes, x.shape[-1]))
