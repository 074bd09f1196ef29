"""Every metric against scikit-learn or a formula: its values, its sums, and wrongly used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from fnn import errors, metrics
from tests.metrics.support import (
    AVERAGED,
    SEEDS,
    TABLE,
    C,
    N,
    assert_close,
    assert_teaches,
    compute_all,
    draw,
    draw_all,
    jit_compute,
    jit_update,
    jit_values,
    update_all,
    values_of,
)
from tests.support import asarray, outcome, same_when_traced

# All metrics go through one program: compiled one by one, these tests would take minutes.


def init_all():
    return {name: row.metric.init() for name, row in TABLE.items()}


def assert_oracles(values, data, rounding=1e-6):
    """Within some roundings of the oracle's values; of r2, within as many as it says."""
    for name, got in values.items():
        outputs, labels = data[TABLE[name].kind]
        got, want, rtol = np.asarray(got), TABLE[name].oracle(np.float64(outputs), labels), rounding
        if name == "r2":
            y = np.float64(labels)
            rtol *= 1 + (y.mean() + 2.5) ** 2 / y.var()
            got, want = (1 - got) / (1 - want), 1.0
        assert_close(got, want, 5 * rtol, name)


@given(seed=SEEDS, count=st.integers(2, N))
def test_values_are_the_oracles_and_a_mask_hides_the_rest(seed, count):
    """All examples, and those at a random mask, with the worst there is in the others."""
    data, rng = draw_all(seed), np.random.default_rng(seed)
    assert_oracles(jit_values(data, np.ones(N, bool)), data)
    mask = np.isin(np.arange(N), rng.permutation(N)[:count])
    spoiled, left = {}, {}
    for kind, (outputs, labels) in data.items():
        left[kind] = outputs[mask], labels[mask]
        outputs, labels = outputs.copy(), labels.copy()
        outputs[~mask] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
        labels[~mask] = np.nan if kind == "numbers" else rng.choice([-1, C, 2**31 - 1])
        spoiled[kind] = outputs, labels
    assert_oracles(jit_values(spoiled, mask), left)


def test_jit_is_eager():
    data, mask = draw_all(0), np.arange(N) < N - 5
    jitted = jit_values(data, mask)
    for name in ("top_k", "mean", "f1_macro", "f1_binary", "roc_auc", "calibration_error", "r2"):
        row = TABLE[name]  # the others are made of the same parts
        eager = row.metric.value(*data[row.kind], mask)
        assert_close(jitted[name], eager, name=name)


def test_what_an_empty_accumulator_gives():
    data = draw_all(0)
    empty = {kind: (x[:0], y[:0]) for kind, (x, y) in data.items()}
    nothing = jit_compute(init_all())
    for values in (nothing, jit_values(empty), jit_values(data, np.zeros(N, bool))):
        for name, got in values.items():
            want = 0 if name.startswith("confusion") else np.nan
            np.testing.assert_array_equal(got, np.full(nothing[name].shape, want), err_msg=name)


def test_narrow_outputs_are_measured_in_float32():
    """Values are the oracle's at the rounded outputs, to float32's digits."""
    data = draw_all(1)
    data = {kind: (asarray(x, "bfloat16"), y) for kind, (x, y) in data.items()}
    data["classes"] = data["classes"][0].astype("float16"), data["classes"][1]
    values = jit_values(data)
    assert {value.dtype for value in values.values()} == {jnp.dtype("float32")}
    rounded = {kind: (np.float64(x), y) for kind, (x, y) in data.items()}
    assert_oracles(values, rounded)


def test_float64_is_kept():
    rng = np.random.default_rng(2)
    data = draw_all(2) | {"numbers": tuple(rng.normal(size=(2, N)))}
    data["classes"] = rng.normal(size=(N, C)), data["classes"][1]
    with jax.enable_x64(True):
        values = jit_values(data)
    assert {value.dtype for value in values.values()} == {jnp.dtype("float64")}
    assert_oracles(values, data, 1e-14)


@given(seed=SEEDS)
def test_a_weight_is_so_many_examples(seed):
    """Whole weights against the oracle of examples repeated so often; 0 hides NaN, as a mask."""
    data, weights = draw_all(seed), np.random.default_rng(seed).integers(0, 3, N)
    repeated = {kind: [np.repeat(a, weights, axis=0) for a in pair] for kind, pair in data.items()}
    spoiled = {
        kind: (np.where(weights.reshape(-1, *[1] * (x.ndim - 1)) == 0, np.nan, x), y)
        for kind, (x, y) in data.items()
    }
    assume(weights.any())
    values = jit_values(jax.tree.map(asarray, spoiled), None, np.float32(weights))
    assert_oracles(values, repeated)


def test_they_start_at_zero():
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(init_all()))


@given(seed=SEEDS)
def test_any_split_in_any_order_added_or_updated(seed):
    """Pieces of 8, padded and shuffled; some go into one accumulator, some into another."""
    data, rng = draw_all(seed), np.random.default_rng(seed)
    a, b = init_all(), init_all()
    for piece in np.split(rng.permutation(N), np.sort(rng.integers(0, N + 1, 5))):
        for part in np.split(piece, range(8, len(piece), 8)):
            rows = np.concatenate([part, rng.integers(0, N, 8 - len(part))]).astype(int)
            batch = {kind: (x[rows], y[rows]) for kind, (x, y) in data.items()}
            updated = jit_update(a, batch, np.arange(8) < len(part))
            a, b = (b, updated) if rng.random() < 0.5 else (updated, b)
    assert_oracles(jit_compute(jax.tree.map(jnp.add, a, b)), data)


@pytest.mark.cpu
def test_scan_vmap_and_devices_are_the_loop():
    """8 batches of 3: scanned, as lanes that are added, and one a device that are psummed."""
    data = draw_all(3)
    batches = jax.tree.map(lambda a: a.reshape(8, 3, *a.shape[1:]), data)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()

    def one(batch):
        return update_all(init_all(), batch)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(split,), out_specs=whole)
    def devices(data):
        return jax.lax.psum(one(data), "data")

    @jax.jit
    def all_ways(data, batches):
        scanned, _ = jax.lax.scan(lambda a, b: (update_all(a, b), None), init_all(), batches)
        lanes = jax.vmap(one)(batches)
        summed = jax.tree.map(lambda a: a.sum(0, dtype=a.dtype), lanes)
        whole = [compute_all(a) for a in (scanned, summed, devices(data))]
        return whole, jax.vmap(compute_all)(lanes)

    together, each = all_ways(data, batches)
    for values in together:
        assert_oracles(values, data)
    for i in range(8):
        lane = {kind: (x[i], y[i]) for kind, (x, y) in batches.items()}
        assert_oracles({name: got[i] for name, got in each.items()}, lane)


def test_no_ranks_are_promoted():
    data = draw_all(0)
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(values_of, data, np.ones(N, bool), np.ones(N, "float32"))
        for row in AVERAGED.values():
            jax.eval_shape(row.metric.value, *data[row.kind])


BUILDERS = {
    "accuracy": (metrics.accuracy, {}, "classes"),
    "top_k": (metrics.top_k, {"k": 2}, "classes"),
    "binary_accuracy": (metrics.binary_accuracy, {}, "binary"),
    "perplexity": (metrics.perplexity, {}, "classes"),
    "precision": (metrics.precision, {"classes": C, "average": None}, "classes"),
    "recall": (metrics.recall, {"classes": None}, "binary"),
    "f1": (metrics.f1, {"classes": C, "average": "micro"}, "classes"),
    "confusion_matrix": (metrics.confusion_matrix, {"classes": C}, "classes"),
    "roc_auc": (metrics.roc_auc, {"bits": 6}, "scores"),
    "average_precision": (metrics.average_precision, {"bits": 6}, "scores"),
    "calibration_error": (metrics.calibration_error, {"bins": 5}, "classes"),
    "mean_squared_error": (metrics.mean_squared_error, {}, "numbers"),
    "r2": (metrics.r2, {"shift": 1.0}, "numbers"),
}


each_builder = pytest.mark.parametrize("name", BUILDERS)


NOT_ARRAYS = (
    None, "text", 1.5, 3, True, [1.0, 2.0], {"x": None}, object(), jnp.float32, (2, 3),
    np.array(["a", "b"]), np.array([None, 1]), jax.random.key(0),
)  # fmt: skip


BAD_OPTIONS = (
    0, -1, 2.5, True, "text", (), [None], {}, float("nan"), float("inf"), jnp.ones(2), object(),
)  # fmt: skip


def legal(name):
    build, options, kind = BUILDERS[name]
    outputs, labels = draw(kind, np.random.default_rng(0), n=6)
    return build(**options), asarray(outputs), asarray(labels)


def other_shapes(shape):
    for axis, size in enumerate(shape):
        for new in (size + 1, size - 1, 1, 0):
            yield (*shape[:axis], new, *shape[axis + 1 :])
    for drop in range(1, len(shape) + 1):
        yield shape[drop:]
    yield (1, *shape)
    yield (*shape, 1)


@each_builder
def test_wrong_shapes(name):
    metric, outputs, labels = legal(name)
    for shape in other_shapes(labels.shape):
        error = same_when_traced(metric.value, outputs, jnp.zeros(shape, labels.dtype))
        assert_teaches(error, name, errors.ShapeError)
        assert str(shape) in str(error)
    for shape in other_shapes(outputs.shape):
        error = same_when_traced(metric.value, jnp.zeros(shape, outputs.dtype), labels)
        if error is None:  # another number of classes is legal where none was said
            assert name in ("accuracy", "top_k", "perplexity", "calibration_error")
            assert shape[:-1] == labels.shape
            continue
        assert_teaches(error, name, errors.ShapeError)
    for shape in other_shapes(labels.shape):
        error = same_when_traced(metric.value, outputs, labels, jnp.zeros(shape, bool))
        if shape != ():
            assert_teaches(error, name, errors.ShapeError)


@each_builder
def test_wrong_dtypes(name):
    metric, outputs, labels = legal(name)
    for dtype in (jnp.int32, bool, jnp.complex64):
        error = same_when_traced(metric.value, outputs.astype(dtype), labels)
        assert_teaches(error, name, errors.DtypeError)
    error = same_when_traced(metric.value, outputs, labels.astype(jnp.complex64))
    assert_teaches(error, name, errors.DtypeError)
    if outputs.ndim == 2:
        error = same_when_traced(metric.value, outputs, labels == 1)
        assert_teaches(error, name, errors.DtypeError)
    for dtype in (jnp.int32, jnp.float32, jnp.complex64):
        error = same_when_traced(metric.value, outputs, labels, jnp.ones(6, dtype))
        assert_teaches(error, name, errors.DtypeError)
        assert "mask != 0" in str(error)
    error = same_when_traced(metric.value, outputs, labels, None, jnp.ones(6, bool))
    assert_teaches(error, name, errors.DtypeError)


@each_builder
def test_things_that_are_no_arrays(name):
    metric, outputs, labels = legal(name)
    for wrong in NOT_ARRAYS:
        assert_teaches(outcome(metric.value, wrong, labels), name)
        assert_teaches(outcome(metric.value, outputs, wrong), name)
        if wrong is not None:
            assert_teaches(outcome(metric.value, outputs, labels, wrong), name)


@each_builder
def test_accumulators_of_something_else(name):
    metric, outputs, labels = legal(name)
    good = metric.init()
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), good)
    narrow = jax.tree.map(lambda a: a.astype(jnp.float16), good)
    strange = jax.tree.map(lambda a: object(), good)
    for wrong in (None, 0.0, outputs, {}, (good,), stacked, narrow, strange):
        for call in (lambda w: metric.update(w, outputs, labels), metric.compute):
            error = outcome(call, wrong)
            assert_teaches(error, name, errors.InputError)
            assert "init()" in str(error)


@each_builder
def test_wrong_options(name):
    build, options, _ = BUILDERS[name]
    for option in options:
        for bad in BAD_OPTIONS:
            if option == "shift" and isinstance(bad, (int, float)) and np.isfinite(bad):
                if not isinstance(bad, bool):
                    continue
            error = outcome(lambda option=option, bad=bad: build(**{**options, option: bad}))
            assert_teaches(error, name, errors.OptionError)
