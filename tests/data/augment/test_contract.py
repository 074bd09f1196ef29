"""What holds for every augmentation: one table, few programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import errors
from fnn.data import augment
from tests.data.augment.support import images, keys, noise
from tests.support import QUICK, asarray, refused

MOVES = {  # which take any dtype
    "flip": augment.flip(),
    "flip of rows": augment.flip(-3),
    "shift": augment.shift((2, 1), fill=3),
    "crop": augment.crop((4, 3), 1),
    "cutout": augment.cutout((2, 3), fill=2),
    "erase": augment.erase(),
    "mask_spans": augment.mask_spans(2, 3),
    "mask of features": augment.mask_spans(1, 1, -1),
    "rotated labels": augment.rotate(40, order=0),
    "bent labels": augment.elastic(5, 2, order=0),
    "with_probability": augment.with_probability(0.5, augment.flip()),
}
FLOATS = {  # which need floats
    "rotate": augment.rotate(30),
    "zoom": augment.zoom(0.5, 1.5),
    "shear": augment.shear(20),
    "affine": augment.affine(20, 1.5, (0.8, 1.2), 10, fill=0.5),
    "elastic": augment.elastic(8, 2),
    "brightness": augment.brightness(0.5),
    "contrast": augment.contrast(0.2, 2),
    "noise": augment.noise(0.3),
    "time_warp": augment.time_warp(1.5),
    "chain": augment.chain(augment.flip(), augment.rotate(15), noise=augment.noise(0.1)),
    "choose": augment.choose(augment.rotate(15), augment.erase(), augment.shift(1)),
}
LIKE_OTHERS = (  # of one program with another one, and left out of the quick run
    "flip of rows", "mask of features", "bent labels", "rotate", "zoom", "shear", "brightness",
    "with_probability",
)  # fmt: skip
ALL = {n: f for n, f in (MOVES | FLOATS).items() if not (QUICK and n in LIKE_OTHERS)}
SINGLE = [name for name in ALL if name not in ("chain", "choose", "with_probability")]
VIDEO = noise((2, 6, 5, 3))  # two images that share one draw; or sequences [2, 6] of T = 5
KEYS = keys(3)
PER_VALUE = ("noise", "chain")  # which draw for each value


@jax.jit
def program(ks, x):
    some = ALL if x.dtype == jnp.float32 else SINGLE if x.dtype != jnp.uint8 else MOVES
    return {name: jax.vmap(ALL[name], (0, None))(ks, x) for name in some if name in ALL}


def each(x, ks=KEYS):
    """All augmentations on x with each key, by one program: {name: [keys, ...]}."""
    return jax.tree.map(np.asarray, program(ks, x))


def test_a_mapped_program_is_a_loop_of_single_calls():
    mapped = each(VIDEO)
    single = jax.jit(lambda key, x: {name: f(key, x) for name, f in ALL.items()})
    looped = [single(key, VIDEO) for key in KEYS]
    for name in ALL:
        for lane, one in zip(mapped[name], looped, strict=True):
            np.testing.assert_allclose(lane, one[name], atol=1e-5, err_msg=name)
            assert lane.dtype == np.float32
    for name in ["shift"] if QUICK else ALL:  # without jit
        np.testing.assert_allclose(ALL[name](KEYS[0], VIDEO), looped[0][name], atol=1e-5)


def test_axes_in_front_share_one_draw():
    twice = np.concatenate([VIDEO[:1], VIDEO[:1]])
    for name, ys in each(twice).items():
        if name not in PER_VALUE:
            np.testing.assert_array_equal(ys[:, 0], ys[:, 1], err_msg=name)
            by_chance = name in ("choose", "with_probability")  # these keys may choose none
            assert by_chance or not np.array_equal(ys[:, 0], [twice[0]] * 3)


@pytest.mark.parametrize("dtype", ["bfloat16"] if QUICK else ["bfloat16", "float16"])
def test_narrow_floats_stay(dtype):
    x = asarray(VIDEO, dtype)
    narrow, wide = each(x), each(np.asarray(x, np.float32))
    close = 0.02 if dtype == "float16" else 0.1
    for name, y in narrow.items():
        assert y.dtype == dtype, name
        np.testing.assert_allclose(np.float32(y), wide[name], atol=close, err_msg=name)


def test_bytes_are_moved_as_they_are():
    x = images((2, 6, 5, 3), "uint8")
    floats = each(np.asarray(x, np.float32))
    for name, whole in each(x).items():
        assert whole.dtype == np.uint8
        np.testing.assert_array_equal(whole, floats[name], err_msg=name)


def test_one_nan_does_not_spread():
    """Beyond the four pixels that are interpolated from it, in a map that at most doubles."""
    x = VIDEO.copy()
    x[0, 2, 2, 0] = np.nan
    x[1] = np.nan
    for name, ys in each(x).items():
        if name != "contrast":  # of the channel's mean
            assert np.isnan(ys[:, 0]).sum((1, 2, 3)).max() <= 16, name
        assert np.isfinite(ys[:, 0, ..., 1:]).all(), name


def test_empty_axes():
    for shape in ((0, 6, 5, 3), (2, 6, 5, 0)):
        for name, f in ALL.items():
            if name == "mask of features":
                continue
            y = jax.eval_shape(f, KEYS[0], jax.ShapeDtypeStruct(shape, jnp.float32))
            assert y.shape[0] == shape[0] and y.shape[-1] == shape[-1]
    none = jax.jit(lambda x: {n: jax.vmap(ALL[n])(keys(0), x) for n in SINGLE})
    assert all(y.shape[0] == 0 for y in none(np.zeros((0, 6, 5, 3), np.float32)).values())


def test_images_of_one_pixel():
    some = {n: ALL[n] for n in ("shift", "cutout", "erase", "elastic", "contrast")}
    run = jax.jit(lambda x: {name: f(KEYS[0], x) for name, f in some.items()})
    for name, y in run(np.ones((1, 1, 1), np.float32)).items():
        assert np.isfinite(y).all() and y.shape == (1, 1, 1), name


def test_gradients_by_x_are_finite():
    @jax.jit
    @jax.grad
    def slope(x):
        return sum(jnp.sum(jnp.sin(ALL[name](KEYS[0], x))) for name in SINGLE)

    assert np.isfinite(slope(VIDEO[0])).all()


def traced(s):
    return {
        "flip": augment.flip(rate=s),
        "rotate": augment.rotate(40 * s, fill=s),
        "zoom": augment.zoom(1 - s / 2, 1 + s),
        "shear": augment.shear(20 * s),
        "affine": augment.affine(20 * s, 2 * s, (1 - s / 2, 1 + s), 10 * s),
        "elastic": augment.elastic(10 * s, 1 + s),
        "brightness": augment.brightness(s),
        "contrast": augment.contrast(1 - s, 1 + s),
        "noise": augment.noise(s),
        "erase": augment.erase((0.1 * s, s), (0.5, 1 + s), fill=s),
        "time_warp": augment.time_warp(2 * s),
        "with_probability": augment.with_probability(s, augment.flip(rate=1.0)),
        "choose": augment.choose(augment.shift(1), augment.flip(-3), weights=[s, 1 - s]),
    }


def test_numbers_may_be_traced():
    """A program in which the strength is traced gives what the plain numbers give."""
    x, left_out = VIDEO[0], LIKE_OTHERS if QUICK else ()

    def all_at(s):
        return {n: f(KEYS[0], x) for n, f in traced(s).items() if n not in left_out}

    run = jax.jit(all_at)
    for s in [0.3] if QUICK else [0.0, 0.3, 0.9]:
        plain = jax.jit(lambda s=s: all_at(s))()
        for name, y in run(jnp.float32(s)).items():
            np.testing.assert_allclose(y, plain[name], atol=2e-5, err_msg=f"{name} at {s}")
    for s in (0.0, 1.0):
        assert all(np.isfinite(y).all() for y in run(jnp.float32(s)).values())


@pytest.mark.parametrize("setting", ["jax_numpy_rank_promotion", "jax_enable_x64"])
def test_under_settings_of_jax(setting):
    before = getattr(jax.config, setting)
    jax.config.update(setting, "raise" if "rank" in setting else True)
    try:
        ys = jax.eval_shape(lambda x: {n: f(KEYS[0], x) for n, f in ALL.items()}, VIDEO)
        assert all(y.dtype == np.float32 for y in ys.values())
        mixes = [augment.mixup(1.0, 3), augment.cutmix(1.0, 3)]
        x = jnp.ones((4, 5, 6, 1), jnp.float32)
        for mix in mixes:
            x, p = jax.eval_shape(mix, KEYS[0], x, jnp.zeros(4, jnp.int32))
            assert x.dtype == p.dtype == np.float32
        tokens, chosen = jax.eval_shape(augment.mask_tokens(0.2, 1, 9), KEYS[0], TOKENS)
        assert tokens.dtype == np.int32 and chosen.dtype == bool
    finally:
        jax.config.update(setting, before)


TOKENS = np.zeros((2, 3), np.int32)
IMAGE, WHOLE, KEY = jnp.ones((4, 4, 1)), images((4, 4, 1)), jax.random.key(0)
MISTAKES = {
    "rotate": (lambda: augment.rotate(-1), errors.OptionError, "degrees in [0.0, inf)"),
    "rotate many": (lambda: augment.rotate((1, 2)), errors.OptionError, "one number"),
    "zoom": (lambda: augment.zoom(2, 1), errors.OptionError, "low of zoom at most high"),
    "zoom 0": (lambda: augment.zoom(0, 1), errors.OptionError, "low of zoom above 0"),
    "shear": (lambda: augment.shear(90), errors.OptionError, "shear in [0.0, 90.0)"),
    "affine": (lambda: augment.affine(zoom=2.0), errors.OptionError, "(low, high)"),
    "affine shift": (lambda: augment.affine(shift=(1, -2)), errors.OptionError, "shift in"),
    "order": (lambda: augment.affine(order=3), errors.OptionError, "order 0 or 1"),
    "fill": (lambda: augment.rotate(3, fill="black"), errors.OptionError, "fill to be a number"),
    "shift": (lambda: augment.shift(1.5), errors.OptionError, "pixels to be an int"),
    "shift pair": (lambda: augment.shift((1, -1)), errors.OptionError, "pixels to be an int"),
    "shift array": (lambda: augment.shift(jnp.ones(2, int)), errors.OptionError, "pixels to be"),
    "shift float": (lambda: augment.shift(jnp.ones(())), errors.OptionError, "pixels to be an int"),
    "crop": (lambda: augment.crop(0), errors.OptionError, "size to be an int"),
    "crop large": (lambda: augment.crop(9, 2)(KEY, IMAGE), errors.ShapeError, "at least (9, 9)"),
    "flip": (lambda: augment.flip(1), errors.OptionError, "axis to be an int below 0"),
    "flip rate": (lambda: augment.flip(rate=1.5), errors.OptionError, "rate in"),
    "flip axis": (lambda: augment.flip(-4)(KEY, IMAGE), errors.ShapeError, "flip: expected x with"),
    "elastic": (lambda: augment.elastic(1, 0), errors.OptionError, "sigma above 0"),
    "erase": (lambda: augment.erase((0.1, 1.2)), errors.OptionError, "high of area in [0.0, 1.0]"),
    "erase aspect": (lambda: augment.erase(aspect=(0, 1)), errors.OptionError, "low of aspect ab"),
    "erase area": (lambda: augment.erase(0.3), errors.OptionError, "area to be (low, high)"),
    "contrast": (lambda: augment.contrast(-1, 1), errors.OptionError, "low in"),
    "noise": (lambda: augment.noise(None), errors.OptionError, "stddev to be a number"),
    "spans": (lambda: augment.mask_spans(1, 2, axis=-3), errors.OptionError, "-2 or -1"),
    "warp": (lambda: augment.time_warp(2)(KEY, IMAGE), errors.ShapeError, "T of at least 2 x 2"),
    "tokens": (lambda: augment.mask_tokens(0.1, 9, 9), errors.OptionError, "below num_tokens=9"),
    "special": (
        lambda: augment.mask_tokens(0.1, 1, 9, special=0.5), errors.OptionError, "special to be"
    ),
    "shares": (
        lambda: augment.mask_tokens(0.1, 1, 9, masked=0.8, replaced=0.3),
        errors.OptionError, "masked + replaced of at most 1",
    ),
    "float tokens": (
        lambda: augment.mask_tokens(0.1, 1, 9)(KEY, IMAGE), errors.DtypeError, "integers that hold"
    ),
    "narrow tokens": (
        lambda: augment.mask_tokens(0.1, 1, 999)(KEY, WHOLE), errors.DtypeError, "hold 999 tokens"
    ),
    "rank": (lambda: augment.rotate(3)(KEY, IMAGE[0]), errors.ShapeError, "x [..., H, W, C]"),
    "no array": (lambda: augment.flip()(KEY, "cat"), errors.InputError, "arrays"),
    "key": (lambda: augment.flip()(0, IMAGE), errors.RandomKeyError, "flip: expected a key"),
    "keys": (lambda: augment.flip()(KEYS, IMAGE), errors.RandomKeyError, "jax.vmap over them"),
    "integers": (lambda: augment.rotate(3)(KEY, WHOLE), errors.DtypeError, "pass order=0"),
    "integer noise": (lambda: augment.noise(3)(KEY, WHOLE), errors.DtypeError, "cast: x.astype"),
    "integer fill": (
        lambda: augment.shift(1, fill=0.5)(KEY, WHOLE), errors.OptionError, "fill that uint8 holds"
    ),
    "negative fill": (
        lambda: augment.cutout(1, fill=-1.0)(KEY, WHOLE), errors.OptionError, "fill that uint8"
    ),
    "infinite fill": (
        lambda: augment.cutout(1, fill=np.inf)(KEY, WHOLE), errors.OptionError, "fill that uint8"
    ),
    "large fill": (
        lambda: augment.shift(1, fill=1e6)(KEY, IMAGE.astype("float16")), errors.OptionError,
        "fill that float16 holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    call, kind, words = MISTAKES[name]
    error = refused(call, kind)
    assert words in str(error) and error.mend and error.layer, str(error)
