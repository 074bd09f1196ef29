"""Augmentations: pure functions `(key, x) -> x`, jitted and mapped over a batch inside the step.

An image is [..., H, W, C], a sequence [..., T, C]; axes in front share one draw (frames of a video,
for instance), so a batch is a `jax.vmap` with one key for each example, as by
`fnn.train.supervised(net, loss, augment=...)`. Files: what moves images (`geometry`), changes their
values (`color`), blots out (`boxes`); `sequences`, `tokens`; what mixes a batch (`mixtures`); and
what is made of others (`composition`).
"""

from fnn.data.augment.boxes import cutout, erase
from fnn.data.augment.color import brightness, contrast, noise
from fnn.data.augment.composition import chain, choose, with_probability
from fnn.data.augment.geometry import affine, crop, elastic, flip, rotate, shear, shift, zoom
from fnn.data.augment.mixtures import cutmix, mixup
from fnn.data.augment.sequences import mask_spans, time_warp
from fnn.data.augment.tokens import mask_tokens

__all__ = [
    "affine", "brightness", "chain", "choose", "contrast", "crop", "cutmix", "cutout", "elastic",
    "erase", "flip", "mask_spans", "mask_tokens", "mixup", "noise", "rotate", "shear", "shift",
    "time_warp", "with_probability", "zoom",
]  # fmt: skip
