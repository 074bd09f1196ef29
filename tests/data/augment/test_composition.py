"""Chains, choices and chances: names, keys, shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import errors
from fnn.data import augment
from tests.data.augment.support import images, keys, mapped, noise
from tests.support import refused

KEY = jax.random.key(0)
DRAW = jax.random.normal  # what a step sees of its key


def adds(key, x):
    return x + DRAW(key, (), x.dtype)


def scales(key, x):
    return x * DRAW(key, (), x.dtype)


def seen(**steps):
    """The keys' draws by name, of a chain of functions that record theirs."""
    found = {}

    def record(name):
        def f(key, x):
            found[name] = float(DRAW(key, ()))
            return x

        return f

    augment.chain(**{name: record(name) for name in steps})(KEY, jnp.zeros(()))
    return found


def test_draws_follow_names():
    all_three = seen(a=1, b=1, c=1)
    assert len(set(all_three.values())) == 3
    assert seen(c=1, a=1) == {name: all_three[name] for name in ("a", "c")}


def test_numbers_count_by_kind_and_removing_one_changes_no_other():
    x, noise_of = noise((6, 6, 1)), augment.noise
    fs = [
        augment.chain(noise_of(0.1), augment.flip(), noise_of(0.2)),
        augment.chain(noise1=noise_of(0.1), flip1=augment.flip(), noise2=noise_of(0.2)),
        augment.chain(noise_of(0.1)),
        augment.chain(noise_of(0.0), augment.shift(0), noise_of(0.2)),
        augment.chain(noise2=noise_of(0.2)),
    ]
    both, same, first, rest, alone = jax.jit(lambda x: [f(KEY, x) for f in fs])(x)
    np.testing.assert_array_equal(both, same)
    np.testing.assert_allclose(rest, alone, atol=1e-6)
    assert np.abs(2 * (first - x) - (alone - x)).max() > 0.1  # noise1 is not noise2


def test_a_chain_is_its_steps_in_order():
    f = augment.chain(adds, lambda key, x: 3 * x, scales)
    a, s = (float(DRAW(jax.random.fold_in(KEY, crc(n)), ())) for n in ("adds1", "scales1"))
    np.testing.assert_allclose(f(KEY, jnp.float32(2)), (2 + a) * 3 * s, rtol=1e-5)
    assert augment.chain()(KEY, 5) == 5


def crc(name):
    import zlib

    return zlib.crc32(name.encode())


def test_chains_nest():
    x = noise((4, 4, 1))
    inner = augment.chain(augment.noise(0.1), augment.flip())
    f = augment.chain(inner, inner)
    y = jax.jit(f)(KEY, x)
    one = jax.jit(inner)(jax.random.fold_in(KEY, crc("chain1")), x)
    two = jax.jit(inner)(jax.random.fold_in(KEY, crc("chain2")), one)
    np.testing.assert_allclose(y, two, atol=1e-6)


def test_choices_come_at_their_weights():
    fs = [lambda key, x, i=i: x + i for i in range(3)]
    for weights, chances in ((None, [1 / 3] * 3), ([1, 0, 3.0], [0.25, 0, 0.75])):
        ys = mapped(augment.choose(*fs, weights=weights), keys(600), jnp.int32(0))
        counts = np.bincount(ys, minlength=3)
        assert np.abs(counts / 600 - chances).max() < 5 * 0.5 / np.sqrt(600)
        assert (counts[np.equal(chances, 0)] == 0).all()
    traced = jax.jit(lambda w, key: augment.choose(*fs, weights=w)(key, jnp.int32(0)))
    assert traced(jnp.float32([0, 1, 0]), KEY) == 1 and traced(jnp.float32([0, 0, 9]), KEY) == 2


def test_the_chosen_one_draws_by_its_name():
    f = augment.choose(adds, other=scales, weights=[0, 1])
    s = DRAW(jax.random.fold_in(KEY, crc("other")), ())
    np.testing.assert_allclose(f(KEY, jnp.float32(2)), 2 * s, rtol=1e-6)


def test_with_probability():
    x = images((3, 2, 1))
    ys = mapped(augment.with_probability(0.2, augment.flip(rate=1.0)), keys(500), x)
    flipped = (ys == np.flip(x, -2)).all((1, 2, 3))
    assert (flipped | (ys == np.asarray(x)).all((1, 2, 3))).all()
    assert abs(flipped.mean() - 0.2) < 5 * 0.4 / np.sqrt(500)
    half = augment.with_probability(0.5, adds)  # the coin does not decide what f draws
    ys = mapped(half, keys(400), jnp.float32(0))
    assert abs((ys[ys != 0] > 0).mean() - 0.5) < 0.2


def which(key, x):
    return x + DRAW(key, ())


def coin(key, x):
    return x + DRAW(key, ())


def test_no_name_shares_the_key_of_the_choice():
    """Of what is added where it is chosen, half is above 0, whatever the function is called."""
    other = {"other": lambda key, x: x}
    for f in (augment.choose(which=which, **other), augment.with_probability(0.5, coin)):
        ys = mapped(f, keys(800), jnp.float32(0))
        assert abs((ys[ys != 0] > 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(400)


def test_choices_read_numpys_arrays_as_they_are():
    x = np.arange(1, 7, dtype=">f4").reshape(2, 3)
    fs = augment.choose(adds, adds, weights=[0, 1]), augment.with_probability(0.0, adds)
    masked = np.ma.masked_array(np.ones(3, np.float32), [0, 1, 0])
    for f in fs:
        np.testing.assert_array_equal(f(KEY, x), f(KEY, x.astype("f4")))
        assert "without a mask" in str(refused(lambda f=f: f(KEY, masked)))


def test_any_tree_goes_through():
    def both(key, x):
        return {"image": augment.flip(rate=1.0)(key, x["image"]), "extra": x["extra"]}

    f = augment.chain(augment.with_probability(1.0, both), augment.choose(both, both))
    x = {"image": images((2, 3, 1)), "extra": jnp.arange(3)}
    np.testing.assert_array_equal(jax.jit(f)(KEY, x)["image"], x["image"])  # mirrored twice


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: augment.chain(augment.flip), r"chain: .* got flip; call it: flip\("),
        (lambda: augment.chain(augment.flip(), 3), "a function of .key, x."),
        (lambda: augment.chain(augment.flip(), flip1=augment.flip()), "two of flip1"),
        (lambda: augment.choose(), "at least one augmentation"),
        (lambda: augment.choose(adds, weights=[1, 2]), "expected 1 weights, got 2"),
        (lambda: augment.choose(adds, scales, weights=[0, 0]), "a weight above 0"),
        (lambda: augment.choose(adds, scales, weights=[1, -1]), "weights in"),
        (lambda: augment.choose(adds, weights="ab"), "1 weights"),
        (lambda: augment.with_probability(2, adds), r"p in \[0.0, 1.0\]"),
        (lambda: augment.with_probability(0.5, augment.erase), "call it: erase"),
        (
            lambda: augment.choose(augment.crop(2), augment.crop(3))(KEY, jnp.ones((4, 4, 1))),
            r"choose: expected crop2 to return what crop1 is, \(2, 2, 1\) float32, got \(3, 3, 1\)",
        ),
        (
            lambda: augment.with_probability(0.5, augment.crop(2))(KEY, jnp.ones((4, 4, 1))),
            "with_probability: expected crop to return what x is",
        ),
        (lambda: augment.chain(augment.rotate(3))(KEY, images((3, 3, 1))), "rotate1: expected x"),
        (lambda: augment.chain(adds)(3, jnp.ones(2)), "chain: expected a key"),
    ],
)
def test_mistakes_are_named(call, match):
    error = refused(call)
    import re

    assert re.search(match, str(error)), str(error)
    assert isinstance(error, errors.FnnError) and error.mend
