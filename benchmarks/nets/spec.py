"""Whole networks as data: nested parts, which each library builds by its own layers.

A part is a tuple (kind, sizes...). Weights are drawn here, in NumPy, in the order of the parts, so
that all libraries start from the same numbers; biases start at zero, scales at one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Part = tuple[Any, ...]
Draw = Callable[..., Any]

# The kinds of parts, with channels in and out; images are 2-D, and text is [T, C].
#   chain *parts                 one after the other
#   conv c n k stride            k x k, padded by (k - 1) // 2 on every side, without bias
#   patches c n k                k x k at strides k, then the places as a sequence [H W, n]
#   depthwise c k stride         one k x k filter a channel, padded like conv, without bias
#   up c n                       a transposed convolution, 2 x 2 at strides 2
#   pool                         max, 2 x 2
#   mean                         over all but the channels
#   batch_norm c, group_norm c groups, layer_norm c
#   dense c n, embedding v n, positions t n
#   attention c heads causal
#   relu, gelu (by tanh), leaky_relu (0.2), tanh
#   image h w c                  a vector as an image
#   residual part shortcut       part(x) + shortcut(x), or + x if it is None
#   skip part                    x and part(x), one behind the other along the channels
#   autoencoder encoder decoder n
#                                x and noise [.., n] come in as one; out go the logits of x, and the
#                                n means and logarithms of variances of the code
#   adversaries generator critic both take turns in a training step; inference generates


@dataclass(frozen=True)
class Net:
    """A network, the shape of an example of inputs, and its loss.

    - `loss`: "labels" of `classes`, "next" (the tokens, moved on), "clean" (squared error to other
      images), "elbo" (of binary pixels), or "real" (told from generated ones).
    - `tokens`: the inputs are whole numbers below; 0 if they are not.
    """

    part: Part
    shape: tuple[int, ...]
    loss: str
    classes: int = 0
    tokens: int = 0
    batch: int = 32  # of a training step

    @property
    def answering(self) -> Part:
        """What answers: the network itself, or the generator of adversaries."""
        return self.part[1] if self.part[0] == "adversaries" else self.part


@dataclass(frozen=True)
class Case:
    """What is timed, on `batch` examples.

    - `mode`: "train", a step; "predict", the outputs; "write", the likeliest continuation of PROMPT
      tokens, each read once; "rewrite", the same by reading all of the text for each token.
    """

    net: Net
    mode: str
    batch: int


def chain(*parts: Part) -> Part:
    return ("chain", *parts)


RELU: Part = ("relu",)
PROMPT = 32


def conv_norm(c: int, n: int, k: int, stride: int = 1) -> tuple[Part, ...]:
    return ("conv", c, n, k, stride), ("batch_norm", n)


def resnet18() -> Part:
    """For images of 32 x 32: a stem of 3 x 3 without a pool (He et al. 2016, section 4.2)."""
    parts, c = [*conv_norm(3, 64, 3), RELU], 64
    for n in (64, 128, 256, 512):
        for i in range(2):
            stride = 2 if i == 0 and n > 64 else 1
            main = chain(*conv_norm(c, n, 3, stride), RELU, *conv_norm(n, n, 3))
            same = stride == 1 and c == n
            parts += [
                ("residual", main, None if same else chain(*conv_norm(c, n, 1, stride))),
                RELU,
            ]
            c = n
    return chain(*parts, ("mean",), ("dense", c, 10))


def mobilenet() -> Part:
    """MobileNet at a width of a half (Howard et al. 2017, table 1), its first strides left out."""
    parts, c = [*conv_norm(3, 16, 3), RELU], 16
    plan = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), *((256, 1),) * 5, (512, 2))
    for n, stride in (*plan, (512, 1)):
        parts += [("depthwise", c, 3, stride), ("batch_norm", c), RELU, *conv_norm(c, n, 1), RELU]
        c = n
    return chain(*parts, ("mean",), ("dense", c, 10))


def unet(levels: tuple[int, ...] = (32, 64, 128), c: int = 3) -> Part:
    """Two convolutions a level on the way down and up (Ronneberger et al. 2015), group norms."""

    def double(c: int, n: int) -> Part:
        half = [(("conv", m, n, 3, 1), ("group_norm", n, 8), RELU) for m in (c, n)]
        return chain(*half[0], *half[1])

    n, *deeper = levels
    if not deeper:
        return double(c, n)
    below = chain(("pool",), unet(tuple(deeper), n), ("up", deeper[0], n))
    return chain(double(c, n), ("skip", below), double(2 * n, n))


def transformer(width: int, heads: int, depth: int, causal: bool) -> tuple[Part, ...]:
    """Pre-norm blocks, with the norm that ends them."""
    norm = ("layer_norm", width)
    attend = ("residual", chain(norm, ("attention", width, heads, causal)), None)
    hidden = (("dense", width, 4 * width), ("gelu",), ("dense", 4 * width, width))
    return (*(attend, ("residual", chain(norm, *hidden), None)) * depth, norm)


def vit(width: int = 128) -> Part:
    """Patches of 4 x 4 (Dosovitskiy et al. 2021), their mean read out."""
    parts = (("patches", 3, width, 4), ("positions", 64, width), *transformer(width, 4, 6, False))
    return chain(*parts, ("mean",), ("dense", width, 10))


def gpt(vocabulary: int, length: int, width: int = 128) -> Part:
    """The sizes of examples/gpt.py, with learned positions."""
    parts = (("embedding", vocabulary, width), ("positions", length, width))
    return chain(*parts, *transformer(width, 4, 3, True), ("dense", width, vocabulary))


def vae(pixels: int = 784, hidden: int = 400, code: int = 20) -> Part:
    """The sizes of Kingma & Welling's MNIST experiment, as most retell it."""
    encoder = chain(("dense", pixels, hidden), RELU, ("dense", hidden, 2 * code))
    decoder = chain(("dense", code, hidden), RELU, ("dense", hidden, pixels))
    return ("autoencoder", encoder, decoder, code)


def gan(code: int = 64) -> Part:
    """The shape of DCGAN (Radford et al. 2016), with group norms."""
    generator, critic = [("dense", code, 4 * 4 * 128), ("image", 4, 4, 128)], []
    for c, n in ((128, 64), (64, 32), (32, 16)):
        generator += [("up", c, n), ("group_norm", n, 8), RELU, ("conv", n, n, 3, 1), RELU]
    for c, n in ((3, 32), (32, 64), (64, 128)):
        critic += [("conv", c, n, 4, 2), ("leaky_relu",)]
    generator += [("conv", 16, 3, 3, 1), ("tanh",)]
    return ("adversaries", chain(*generator), chain(*critic, ("mean",), ("dense", 128, 1)))


NETS = {
    "resnet18": Net(resnet18(), (32, 32, 3), "labels", 10, batch=16),
    "mobilenet": Net(mobilenet(), (32, 32, 3), "labels", 10),
    "unet": Net(chain(unet(), ("conv", 32, 3, 1, 1)), (32, 32, 3), "clean"),
    "vit": Net(vit(), (32, 32, 3), "labels", 10),
    "gpt": Net(gpt(96, 128), (128,), "next", 96, 96, batch=8),
    "vae": Net(vae(), (804,), "elbo", batch=128),
    "gan": Net(gan(), (64,), "real", batch=64),
}
CASES = {
    f"{name} {words}": Case(net, mode, batch)
    for name, net in NETS.items()
    for words, mode, batch in (
        ("train", "train", net.batch), ("batch 1", "predict", 1), ("batch 64", "predict", 64),
    )
} | {
    "gpt writes": Case(NETS["gpt"], "write", 1),
    "gpt writes without a cache": Case(NETS["gpt"], "rewrite", 1),
}  # fmt: skip


def inside(part: Part, build: Callable[[Part], Any]) -> list[Any]:
    """A part with the parts in it built, in order."""
    return [build(own) if isinstance(own, tuple) else own for own in part]


def drawing() -> Draw:
    """draw(*shape): the next weights, of variance 2 / fan in (He et al. 2015)."""
    import numpy as np

    random = np.random.default_rng(1)

    def draw(*shape: int) -> Any:
        values = random.normal(size=shape) / math.sqrt(math.prod(shape[:-1]) / 2)
        return values.astype("float32")

    return draw


def batches(case: Case, count: int = 4) -> list[tuple[Any, Any]]:
    """Batches (inputs, targets), channels last."""
    import numpy as np

    random, net, made = np.random.default_rng(2), case.net, []
    for _ in range(count):
        shape = (case.batch, *net.shape)
        if net.tokens:
            x = random.integers(0, net.tokens, shape).astype("int32")
        elif net.loss == "elbo":
            x = random.normal(size=shape).astype("float32")
            x[:, :784] = x[:, :784] > 1
        else:
            x = random.normal(size=shape).astype("float32")
        y = {
            "labels": lambda: random.integers(0, net.classes, case.batch).astype("int32"),
            "next": lambda x=x: np.roll(x, -1, -1),
            "clean": lambda x=x: (x / 2).astype("float32"),
            "elbo": lambda x=x: x[:, :784].copy(),
            "real": lambda: np.tanh(random.normal(size=(case.batch, 32, 32, 3))).astype("float32"),
        }[net.loss]()
        made.append((x, y))
    return made
