"""The oracles themselves: against PyTorch, and their backwards by differences."""

import numpy as np
import pytest

from tests.layers import oracles
from tests.layers.conv import oracles as conv_oracles
from tests.support import assert_close, numeric_vjp


def test_oracle_backwards_are_numeric_derivatives():
    draw = np.random.default_rng(0).normal
    x, kernel = draw(size=(2, 5, 4, 2)), draw(size=(3, 2, 1, 4))
    options = dict(strides=(2, 1), padding="REFLECT", dilation=(1, 2), groups=2)
    dy = draw(size=conv_oracles.conv(x, kernel, **options).shape)
    dx, dkernel, dbias = conv_oracles.conv_backward(x, kernel, dy, **options)
    numeric = numeric_vjp
    assert_close(
        dx, numeric(lambda x: conv_oracles.conv(x, kernel, **options), x, dy), tolerance=1e-7
    )
    by_kernel = numeric(lambda kernel: conv_oracles.conv(x, kernel, **options), kernel, dy)
    assert_close(dkernel, by_kernel, tolerance=1e-7)
    assert_close(dbias, dy.sum((0, 1, 2)))

    options = dict(strides=(2, 1), padding="SAME")
    dy = draw(size=conv_oracles.avg_pool(x, (3, 2), **options).shape)
    for forward, backward in [
        (lambda x: conv_oracles.avg_pool(x, (3, 2), **options), conv_oracles.avg_pool_backward),
        (lambda x: conv_oracles.max_pool(x, (3, 2), **options)[0], conv_oracles.max_pool_backward),
    ]:
        dx = backward(x, dy, (3, 2), **options)
        assert_close(dx, numeric(forward, x, dy), tolerance=1e-7)

    scale, bias, dy = draw(size=2), draw(size=2), draw(size=x.shape)

    def forward(x):
        return oracles.batch_norm_train(x, scale, bias, 0, 1)[0]

    dx, _, _ = oracles.batch_norm_train_backward(x, scale, dy)
    assert_close(dx, numeric(forward, x, dy), tolerance=1e-7)


def test_oracle_forwards_are_torchs():
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0).normal
    x, kernel, bias = draw(size=(2, 6, 5, 4)), draw(size=(3, 2, 2, 6)), draw(size=6)

    def first(x):
        return torch.tensor(np.moveaxis(x, -1, 1))

    def last(y):
        return np.moveaxis(y.numpy(), 1, -1)

    functional = torch.nn.functional
    y = functional.conv2d(
        first(x), torch.tensor(kernel.transpose(3, 2, 0, 1)), torch.tensor(bias), (2, 1), 1, 2, 2
    )
    options = dict(strides=(2, 1), padding=1, dilation=2, groups=2)
    assert_close(conv_oracles.conv(x, kernel, bias, **options), last(y))
    y = functional.max_pool2d(first(x), (3, 2), (2, 1), (1, 1))
    assert_close(conv_oracles.max_pool(x, (3, 2), strides=(2, 1), padding=1)[0], last(y))
    for count_include_pad in (False, True):
        y = functional.avg_pool2d(first(x), 3, 2, 1, count_include_pad=count_include_pad)
        options = dict(strides=2, padding=1, count_include_pad=count_include_pad)
        assert_close(conv_oracles.avg_pool(x, (3, 3), **options), last(y))
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    scale, bias = draw(size=4), draw(size=4)
    y = functional.batch_norm(
        first(x), mean, var, torch.tensor(scale), torch.tensor(bias), True, 0.1, 1e-5
    )
    want, want_mean, want_var = oracles.batch_norm_train(x, scale, bias, np.zeros(4), np.ones(4))
    assert_close(want, last(y))
    assert_close(mean.numpy(), want_mean)
    n = x.size / 4  # torch keeps the unbiased variance
    assert_close((var.numpy() - 0.9) * (n - 1) / n, want_var - 0.9)


def test_the_backward_oracle_is_a_numeric_derivative():
    rng = np.random.default_rng(0)
    x, dy, scale = rng.normal(size=(2, 3, 2, 4)), rng.normal(size=(2, 3, 2, 4)), rng.normal(size=4)

    def forward(x):
        return oracles.group_norm(x, 2, 2, scale, np.zeros(4), 0.1)

    dx = oracles.group_norm_backward(x, 2, 2, scale, dy, 0.1)
    assert_close(dx, numeric_vjp(forward, x, dy), tolerance=1e-7)


def test_oracles_are_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=4), rng.normal(size=4)
    functional, tensor = torch.nn.functional, torch.tensor

    def first(x):
        return tensor(np.moveaxis(x, -1, 1))

    def last(y):
        return np.moveaxis(y.numpy(), 1, -1)

    affine = tensor(scale), tensor(bias)
    y = functional.layer_norm(tensor(x), (4,), *affine, 1e-5)
    assert_close(oracles.layer_norm(x, scale, bias, 1e-5), y.numpy())
    y = functional.rms_norm(tensor(x), (4,), affine[0], 1e-6)
    assert_close(oracles.rms_norm(x, scale, 1e-6), y.numpy())
    y = functional.group_norm(first(x), 2, *affine, 1e-5)
    assert_close(oracles.group_norm(x, 2, 2, scale, bias, 1e-5), last(y))
    y = functional.instance_norm(first(x), None, None, *affine, eps=1e-5)
    assert_close(oracles.group_norm(x, 4, 2, scale, bias, 1e-5), last(y))
    y = functional.prelu(first(x), affine[0])
    assert_close(oracles.prelu(x, scale), last(y))
    x1, x2, kernel = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.normal(size=(3, 2, 4))
    y = functional.bilinear(tensor(x1), tensor(x2), tensor(kernel.transpose(2, 0, 1)), affine[1])
    assert_close(oracles.bilinear(x1, x2, kernel, bias), y.numpy())
    ids = rng.integers(0, 3, (2, 5))
    assert_close(oracles.embedding(ids, x1), functional.embedding(tensor(ids), tensor(x1)).numpy())
