"""Arrays as users have them: of any byte order, width, mask or layout, at every door of fnn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.core.shapes import native, natives
from tests.support import asarray

N = 12
RNG = np.random.default_rng(0)
DATA = {"image": RNG.normal(size=(N, 4)).astype(np.float32), "label": np.arange(N) % 3}
NET = fnn.dense(3)
TX = fnn.optim.sgd(0.1)
XENT = fnn.losses.softmax_cross_entropy
STEP = fnn.train.step(fnn.train.supervised(NET, XENT), TX)
PARAMS, _ = NET.init(jax.random.key(0), (1, 4))
START = fnn.train.init(NET, TX, jax.random.key(0), (1, 4))


@jax.jit
def own_step(ts, batch):
    """A user's, who knows nothing of fnn's gate."""
    wrong, grads = jax.value_and_grad(lambda p: XENT(NET(p, batch["image"]), batch["label"]).sum())(
        ts.params
    )
    params = jax.tree.map(lambda p, g: p - 0.01 * g, ts.params, grads)
    return ts._replace(step=ts.step + 1, params=params), {"loss": wrong}


def fitted(step, driver):
    def fit(data):
        options = dict(epochs=2, batch_size=4, driver=driver, progress=False)
        return fnn.train.fit(step, START, data, **options)[1]["train"]["loss"]

    return fit


def stream(data):
    parts = zip(*(np.split(data[name], 3) for name in ("image", "label")), strict=True)
    batches = [dict(zip(("image", "label"), part, strict=True)) for part in parts]
    epoch = fnn.train.fit(own_step, START, lambda _: iter(batches), epochs=1, progress=False)
    return epoch[1]["train"]["loss"]


def scanned(data):
    return fnn.train.run(STEP, START, data, steps=3, batch_size=4)[1]["train"]["loss"]


def generated(data):
    cell = fnn.cells.serial(fnn.embedding(3, 4), fnn.cells.gru(8), fnn.dense(3))
    params, _ = cell.init(jax.random.key(0), None, asarray([0]))
    given = np.arange(4)[None] < 2
    return fnn.unroll_generate(cell, params, data["label"][None, :4], given, temperature=0).x


def accumulated(data):
    def loss(params, batch):
        return XENT(NET(params, batch["image"]), batch["label"]).mean()

    return fnn.optim.accumulate(loss, k=2)(PARAMS, data)[0]


def converted(data):
    state = {"weight": data["image"][:3], "bias": data["image"][:3, 0]}
    return fnn.convert.from_torch(NET, state, (1, 4))[0]["kernel"]


DOORS = {
    "layer": lambda data: NET(PARAMS, data["image"]),
    "compose": lambda data: fnn.serial(NET)({"dense1": PARAMS}, data["image"]),
    "cast": lambda data: fnn.cast(NET, jnp.bfloat16)(PARAMS, data["image"]),
    "loss": lambda data: XENT(data["image"], data["label"]),
    "metric": lambda data: fnn.metrics.accuracy().value(data["image"], data["label"]),
    "calibration": lambda data: fnn.metrics.calibration_error().value(*data.values()),
    "step": lambda data: STEP(START, data)[1]["loss"],
    "fit, loop": fitted(STEP, "loop"),
    "fit, scan": fitted(STEP, "scan"),
    "fit, own step": fitted(own_step, "loop"),
    "fit, stream": stream,
    "run": scanned,
    "evaluator": lambda data: fnn.train.evaluator(NET, data, {"loss": XENT}, batch_size=5)(START),
    "batches": lambda data: list(
        map(asarray, jax.tree.leaves(list(fnn.data.batches(data, 4, key=jax.random.key(0)))))
    ),
    "accumulate": accumulated,
    "unroll_generate": generated,
    "init": lambda data: NET.init(jax.random.key(0), data["image"])[0]["kernel"],
    "convert": converted,
}
# Both of these see shapes and values of one array alone.
LABELS = [name for name in DOORS if name not in ("layer", "compose", "cast", "init", "convert")]
FLOATS = [name for name in DOORS if name != "unroll_generate"]


def agree(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("door", DOORS)
def test_bytes_of_the_other_order_and_holes_between_them_are_the_same_numbers(door):
    right = DOORS[door](DATA)  # compiled, as JAX must be to read other bytes as they are
    swapped = {name: a.astype(a.dtype.newbyteorder(">")) for name, a in DATA.items()}
    wide = np.zeros((N, 8), np.float32)
    wide[:, ::2] = DATA["image"]
    holes = {"image": wide[:, ::2], "label": np.repeat(DATA["label"], 2)[::2]}
    for data in (swapped, holes):
        agree(DOORS[door](data), right)


@pytest.mark.parametrize("door", LABELS)
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, ">i8"])
def test_integers_that_would_wrap_into_classes_are_refused(door, dtype):
    labels = DATA["label"].astype(dtype)
    labels[1] += 2**32
    with pytest.raises(errors.InputError, match=r"u?int32 holds, got .* \.\.\. 42949672"):
        DOORS[door]({**DATA, "label": labels})


@pytest.mark.parametrize("door", FLOATS)
def test_floats_that_would_become_infinite_are_refused(door):
    if door in ("init", "convert"):
        return  # only shapes matter; no float64 is taken for float32
    image = DATA["image"].astype(np.float64)
    image[:, 1] = 1e39
    with pytest.raises(errors.InputError, match="float32 holds, got .* float64 with larger ones"):
        DOORS[door]({**DATA, "image": image})
    image[:, 1] = np.inf  # which is what it says
    DOORS[door]({**DATA, "image": image})


@pytest.mark.parametrize("door", FLOATS)
def test_masked_arrays_are_refused(door):
    if door == "init":
        return
    image = np.ma.masked_array(DATA["image"], DATA["image"] > 1)
    with pytest.raises(errors.InputError, match=r"NumPy, got masked .*; pass .* x.filled"):
        DOORS[door]({**DATA, "image": image})


@pytest.mark.parametrize("door", [d for d in FLOATS if d not in ("batches", "compose")])
@pytest.mark.parametrize("dtype", [object, "U8", np.longdouble])
def test_what_has_no_numbers_that_jax_has_is_refused(door, dtype):
    with pytest.raises(errors.FnnError):
        DOORS[door]({**DATA, "image": DATA["image"].astype(dtype)})


def test_names_stand_beside_data():
    data = {**DATA, "name": np.arange(N).astype("U3")}
    batches = fnn.data.batches(data, 4, key=jax.random.key(0))
    assert {batch["name"].dtype.kind for batch in batches} == {"U"}


def test_the_message_names_the_array():
    def said(call, *args):
        with pytest.raises(errors.FnnError) as caught:
            call(*args)
        return str(caught.value).split(" that int32")[0]

    data = {**DATA, "label": DATA["label"] + 2**40}
    assert said(STEP, START, data) == "expected batch/label"
    assert said(DOORS["run"], data) == "run: expected data/label"
    assert said(DOORS["loss"], data) == "softmax_cross_entropy: expected labels"
    assert said(natives, np.array([2**31]), "x") == "expected x"


def test_x64_takes_all_that_it_holds():
    with jax.enable_x64(True):
        for a in (np.array([2**40]), np.array([1e300]), np.array([2**63], np.uint64)):
            assert native(a).dtype == a.dtype and asarray(native(a))[0] == a[0]


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.uint16, np.float16, jnp.bfloat16, np.complex64]
)
def test_what_jax_takes_comes_back_itself(dtype):
    a = np.ones(3, dtype)
    assert native(a) is a or dtype == jnp.bfloat16
    assert native(a).dtype == a.dtype
    for other in (jnp.ones(3), "text", None, 2.0, [1]):
        assert native(other) is other
    empty = np.zeros((0, 3), np.int64)
    assert native(empty).shape == (0, 3)


def test_raw_keys_of_another_generator_are_refused():
    four = np.arange(4, dtype=np.uint32)
    with pytest.raises(errors.RandomKeyError, match="wrap_key_data"):
        fnn.train.init(NET, TX, four, (1, 4))
    with pytest.raises(errors.RandomKeyError, match="wrap_key_data"):
        NET.init(four, (1, 4))
    with jax.default_prng_impl("rbg"):
        assert jax.random.key_impl(fnn.train.init(NET, TX, four, (1, 4)).key) == "rbg"
        with pytest.raises(errors.RandomKeyError, match="threefry2x32"):
            NET.init(four[:2], (1, 4))
