"""The networks in PyTorch: channels first in shape, last in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gradients import CHANNELS_FIRST
from benchmarks.nets.spec import PROMPT, Case, Draw, Part, batches, drawing, inside
from benchmarks.networks import RATE, loop
from benchmarks.peers import torch_place
from benchmarks.task import Call, Missing


class Residual(nn.Module):
    def __init__(self, main: Any, shortcut: Any):
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Any) -> Any:
        return self.main(x) + (x if self.shortcut is None else self.shortcut(x))


class Skip(nn.Module):
    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return torch.cat([x, self.inner(x)], 1)


class Autoencoder(nn.Module):
    def __init__(self, encoder: Any, decoder: Any, code: int):
        super().__init__()
        self.encoder, self.decoder, self.code = encoder, decoder, code

    def forward(self, x: Any) -> Any:
        x, noise = x[..., : -self.code], x[..., -self.code :]
        mean, log_var = self.encoder(x).chunk(2, -1)
        return torch.cat([self.decoder(mean + (log_var / 2).exp() * noise), mean, log_var], -1)


class Placed(nn.Module):
    def __init__(self, positions: Any):
        super().__init__()
        self.positions = nn.Parameter(positions)
        self.cache: int | None = None  # how many positions have been read; None: do not count

    def forward(self, x: Any) -> Any:
        start = self.cache or 0
        if self.cache is not None:
            self.cache = start + x.shape[1]
        return x + self.positions[start : start + x.shape[1]]


class Attention(nn.Module):
    """Queries, keys and values by one product, and PyTorch's own attention."""

    def __init__(self, c: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.cache: Any = None  # the keys and values that have been read, if they are kept

    def forward(self, x: Any) -> Any:
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        if self.cache is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(self.cache, (k, v), strict=True))
            self.cache = (k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal and q.shape[2] > 1)
        return self.out(y.transpose(1, 2).flatten(2))


class Apply(nn.Module):
    def __init__(self, fn: Any):
        super().__init__()
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return self.fn(x)


def filled(layer: Any, kernel: Any) -> Any:
    """The layer with these weights, [..., in, out] as fnn lays them out, and no bias."""
    weight = torch.tensor(kernel.transpose(CHANNELS_FIRST[kernel.ndim]).copy())
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


def build(part: Part, draw: Draw) -> Any:
    """The module."""
    kind, *n = inside(part, lambda p: build(p, draw))
    match kind:
        case "chain":
            return nn.Sequential(*n)
        case "residual":
            return Residual(*n)
        case "skip":
            return Skip(*n)
        case "autoencoder":
            return Autoencoder(*n)
        case "conv":
            c, m, k, stride = n
            layer = nn.Conv2d(c, m, k, stride, (k - 1) // 2, bias=False)
            return filled(layer, draw(k, k, c, m))
        case "patches":
            c, m, k = n
            conv = filled(nn.Conv2d(c, m, k, k), draw(k, k, c, m))
            return nn.Sequential(conv, Apply(lambda x: x.flatten(2).transpose(1, 2)))
        case "depthwise":
            c, k, stride = n
            layer = nn.Conv2d(c, c, k, stride, (k - 1) // 2, groups=c, bias=False)
            return filled(layer, draw(k, k, 1, c))
        case "up":
            kernel = draw(2, 2, *n)[::-1, ::-1].swapaxes(-1, -2)  # laid out and turned otherwise
            return filled(nn.ConvTranspose2d(*n, 2, 2), kernel)
        case "batch_norm":
            return nn.BatchNorm2d(n[0])
        case "group_norm":
            return nn.GroupNorm(n[1], n[0])
        case "layer_norm":
            return nn.LayerNorm(n[0])
        case "dense":
            return filled(nn.Linear(*n), draw(*n))
        case "embedding":
            return nn.Embedding(*n, _weight=torch.tensor(draw(*n)))
        case "positions":
            return Placed(torch.tensor(draw(*n)))
        case "attention":
            c, heads, causal = n
            module = Attention(c, heads, causal)
            draws = [draw(c, c) for _ in range(4)]
            with torch.no_grad():
                module.qkv.weight.copy_(torch.cat([torch.tensor(d.T.copy()) for d in draws[:3]]))
                module.qkv.bias.zero_()
            filled(module.out, draws[3])
            return module
        case "pool":
            return nn.MaxPool2d(2)
        case "mean":  # of an image [B, C, H, W] or of a sequence [B, T, C]
            return Apply(lambda x: x.mean((2, 3) if x.ndim == 4 else 1))
        case "relu":
            return nn.ReLU()
        case "gelu":
            return nn.GELU("tanh")
        case "leaky_relu":
            return nn.LeakyReLU(0.2)
        case "tanh":
            return nn.Tanh()
        case "image":
            return Apply(lambda x: x.unflatten(-1, n).permute(0, 3, 1, 2))
    raise ValueError(kind)


def loss(kind: str, y: Any, target: Any) -> Any:
    """The mean over the batch."""
    match kind:
        case "labels" | "next":
            return F.cross_entropy(y.flatten(0, -2), target.long().flatten())
        case "clean":
            return F.mse_loss(y, target)
        case "elbo":
            n = target.shape[-1]
            pixels = F.binary_cross_entropy_with_logits(y[..., :n], target, reduction="none").sum(
                -1
            )
            mean, log_var = y[..., n:].chunk(2, -1)
            apart = mean.square() + log_var.exp() - 1 - log_var
            return (pixels + apart.sum(-1) / 2).mean()
    raise ValueError(kind)


def written(model: Any, text: Any, length: int, cached: bool) -> Any:
    """The likeliest continuation of [B, T], up to a length."""
    for module in model.modules():
        if isinstance(module, Placed) and cached:
            module.cache = 0
        if isinstance(module, Attention) and cached:
            empty = torch.empty(len(text), module.heads, 0, module.out.in_features // module.heads)
            module.cache = (empty.to(text.device), empty.to(text.device))
    new = text
    while text.shape[1] < length:
        token = model(new if cached else text)[:, -1].argmax(-1, keepdim=True).to(text.dtype)
        text, new = torch.cat([text, token], 1), token
    return text


def network(case: Case, compiled: bool = False) -> Call:
    """eager: fused Adam and channels_last, as in its tuning guide"""
    place = torch_place()

    def put(x: Any) -> Any:
        x = torch.tensor(x, device=place)
        return x.permute(0, 3, 1, 2) if x.ndim == 4 else x  # which is channels_last

    def made(part: Part) -> Any:
        return build(part, draw).to(place).to(memory_format=torch.channels_last)

    part, draw = case.net.part, drawing()
    model = made(case.net.answering)
    data = [(put(x), put(y)) for x, y in batches(case)]
    called = torch.compile(model) if compiled else model
    if case.mode != "train":
        model.eval()
        if compiled and case.mode != "predict":
            raise Missing("torch.compile compiles anew for every length")

        def apply(_: None, batch: Any) -> Any:
            with torch.inference_mode():
                if case.mode == "predict":
                    return None, called(batch[0])
                prompt, length = batch[0][:, :PROMPT], case.net.shape[0]
                return None, written(model, prompt, length, case.mode == "write")

        return loop(apply, None, data)
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    if part[0] == "adversaries":
        critic = made(part[2])
        judging = torch.compile(critic) if compiled else critic
        judge = torch.optim.Adam(critic.parameters(), RATE, fused=True)

        def duel(_: None, batch: Any) -> Any:
            fake = called(batch[0])
            real, drawn = judging(batch[1]), judging(fake.detach())
            judge.zero_grad()
            first = (F.softplus(-real) + F.softplus(drawn)).mean()
            first.backward()
            judge.step()
            optimizer.zero_grad()
            second = F.softplus(-judging(fake)).mean()
            second.backward()
            optimizer.step()
            return None, (first + second).detach()

        return loop(duel, None, data)

    def step(_: None, batch: Any) -> Any:
        optimizer.zero_grad()
        value = loss(case.net.loss, called(batch[0]), batch[1])
        value.backward()
        optimizer.step()
        return None, value.detach()

    return loop(step, None, data)
