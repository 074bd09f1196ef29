"""Connectionist temporal classification, language models and their units."""

import functools
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import losses
from tests.losses import oracles as plain
from tests.losses.support import NOT_ARRAYS, given_as
from tests.support import asarray, assert_close, assert_teaches, outcome


def test_a_language_models_mask_marks_what_is_predicted():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(4, 5)), np.array([1, 3, 0, 2])
    exact = plain.language_model(logits, tokens)
    mask = np.array([False, False, True, False])  # a prompt of two tokens, padding of one
    logits[2] = np.nan  # predicts what is masked
    f = jax.jit(functools.partial(losses.language_model, mask=mask))
    got = f(asarray(logits, "float32"), asarray([1, 3, 0, -1]))
    assert_close(got, [0, exact[1], 0], dtype="float32")
    assert_close(losses.masked_mean(got, mask[1:]), exact[1])


def test_bits_per_character():
    nats = np.log([1.0, 7.0, 50.0])
    bits = losses.bits_per_character(asarray(nats, "float32"), tokens=10, characters=40)
    assert_close(bits, np.log2([1, 7, 50]) / 4, dtype="float32")
    assert_close(losses.bits_per_character(np.log(2)), 1.0, dtype="float32")
    assert losses.bits_per_character(asarray(nats, "bfloat16")).dtype == jnp.float32
    for wrong in NOT_ARRAYS:
        if not isinstance(wrong, (int, float)):
            assert_teaches(outcome(losses.bits_per_character, wrong), "bits_per_character")
    assert_teaches(outcome(losses.bits_per_character, 1.0, 0), "bits_per_character")


def ctc_inputs(seed, batch=4, times=12, places=4, classes=6):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(batch, times, classes))
    labels = rng.integers(1, classes, (batch, places))
    labels[0] = labels[0, 0]  # repeats, each of which takes a blank
    return logits, labels, rng.integers(8, times + 1, batch), rng.integers(0, places + 1, batch)


def test_ctc_is_optaxs_and_torchs():
    optax = pytest.importorskip("optax")
    logits, labels, times, places = ctc_inputs(0)
    args, _ = given_as("float32", [logits, labels, times, places])
    got, (gradient,) = with_gradient_of_ctc(*args)
    time_padding = (np.arange(12) >= times[:, None]).astype("float32")
    label_padding = (np.arange(4) >= places[:, None]).astype("float32")
    wanted = jax.jit(optax.ctc_loss)(args[0], time_padding, args[1], label_padding)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    torch = pytest.importorskip("torch")
    x = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        x.log_softmax(-1).transpose(0, 1),
        *map(torch.tensor, (labels, times, places)),
        reduction="none",
    )
    loss.sum().backward()
    assert_close(got, loss.detach().numpy(), dtype="float32")
    assert_close(gradient, x.grad.numpy(), dtype="float32")


@jax.jit
def with_gradient_of_ctc(logits, *rest):
    out, vjp = jax.vjp(lambda x: losses.ctc(x, *rest), logits)
    return out, vjp(jnp.ones_like(out))


def test_ctc_without_a_path_is_infinite_and_flat():
    logits = asarray(np.random.default_rng(0).normal(size=(3, 3, 3)), "float32")
    labels = asarray([[1, 1], [1, 2], [1, 1]])
    got, (gradient,) = with_gradient_of_ctc(logits, labels, asarray([2, 1, 3]), asarray([2, 2, 2]))
    np.testing.assert_array_equal(np.isinf(got), [True, True, False])
    assert not np.asarray(gradient)[:2].any() and np.isfinite(gradient).all()


def test_ctc_looks_at_no_padding_and_refuses_wrong_values():
    logits, labels, *_ = ctc_inputs(1)
    times, places = np.array([5, 5, 0, 0]), np.array([2, 0, 0, 1])
    x, y = logits.copy(), labels.copy()
    x[:, 5:], y[:, 2:] = np.nan, -7
    got, (gradient,) = with_gradient_of_ctc(*given_as("float32", [x, y, times, places])[0])
    wanted = [plain.ctc(logits[i], labels[i], 5, places[i]) for i in range(2)]
    assert_close(got, [*wanted, 0, np.inf], dtype="float32")  # no times: certain to be empty
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[:, 5:].any()
    for wrong in ([0, 1, 2, 3], [1, 1, 1, 6], [1, -1, 2, 2]):  # a blank; out of range
        bad = labels.copy()
        bad[1] = wrong
        args = given_as("float32", [logits, bad, np.full(4, 12), np.full(4, 4)])[0]
        np.testing.assert_array_equal(np.isnan(with_gradient_of_ctc(*args)[0]), [0, 1, 0, 0])
    lengths = np.array([12, 13, -1, 12]), np.array([4, 4, 4, 5])
    args = given_as("float32", [logits, labels, *lengths])[0]
    np.testing.assert_array_equal(np.isnan(with_gradient_of_ctc(*args)[0]), [0, 1, 1, 1])


def test_ctc_of_bytes():
    got = jax.jit(losses.ctc)(jnp.zeros((2, 300)), asarray([200], jnp.uint8))
    assert_close(got, np.log(300**2 / 3), dtype="float32")


def test_ctc_of_a_long_sequence_does_not_underflow():
    """Every path has probability 3^-400."""
    n, k = 400, 2
    paths = comb(n + k, 2 * k)  # ways to cut time into k runs and k + 1 gaps, which may be empty
    got = jax.jit(losses.ctc)(jnp.zeros((n, 3)), asarray([1, 2]))
    assert_close(got, n * np.log(3) - np.log(paths), dtype="float32")
