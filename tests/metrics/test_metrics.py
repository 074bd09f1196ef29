"""Metrics against scikit-learn and float64 loops; that accumulators are sums; wrong inputs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sklearn
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

import fnn
from fnn import errors, metrics
from tests.losses import oracles_batch
from tests.metrics import oracles as metrics_oracles

SEEDS = st.integers(0, 2**32 - 1)
N, C = 24, 4


# --- oracles: (outputs, labels) in float64 -> value


def top_k(k, logits, labels):
    """Whether the label is among the first k of a stable sort, example by example."""
    ranked = [sorted(range(len(row)), key=lambda c, row=row: -row[c])[:k] for row in logits]
    return np.mean([label in best for label, best in zip(labels, ranked, strict=True)])


def calibration_error(bins, logits, labels):
    """Guo et al. 2017, equation 3: a loop over bins of a loop over examples."""
    p = np.exp(oracles_batch.log_softmax(logits))
    total = 0.0
    for b in range(bins):
        inside = [i for i in range(len(p)) if b / bins < max(p[i]) <= (b + 1) / bins]
        right = sum(int(np.argmax(p[i]) == labels[i]) for i in inside)
        total += abs(right - sum(max(p[i]) for i in inside))
    return total / len(p)


def of_classes(score, average, logits, labels):
    """scikit-learn's, of which ours differs in one thing: a class that does not occur is NaN."""
    predicted = logits.argmax(-1)
    if average:
        return score(labels, predicted, average=average, zero_division=0)
    each = score(labels, predicted, average=None, labels=range(C), zero_division=0)
    occurs = np.isin(range(C), np.concatenate([labels, predicted]))
    return np.where(occurs, each, np.nan)


def binary(score, logits, labels):
    if not (labels.any() or (logits > 0).any()):
        return np.nan
    return score(labels, logits > 0, zero_division=0)


def roc_auc(scores, labels):
    return sklearn.roc_auc_score(labels, scores) if 0 < sum(labels) < len(labels) else np.nan


def average_precision(scores, labels):
    return (
        sklearn.average_precision_score(labels, scores) if 0 < sum(labels) < len(labels) else np.nan
    )


def r2(outputs, targets):
    return sklearn.r2_score(targets, outputs)


# --- the table: a metric, what its inputs are, its oracle


class Row(NamedTuple):
    metric: metrics.Metric
    kind: str  # of inputs, see `draw`
    oracle: object


def losses(outputs, labels):
    return fnn.losses.softmax_cross_entropy(outputs, labels)


cross_entropy, cm = oracles_batch.softmax_cross_entropy, sklearn.confusion_matrix
TABLE = {
    "accuracy": Row(metrics.accuracy(), "classes", functools.partial(top_k, 1)),
    "top_k": Row(metrics.top_k(3), "classes", functools.partial(top_k, 3)),
    "binary_accuracy": Row(
        metrics.binary_accuracy(), "binary", lambda z, y: sklearn.accuracy_score(y, z > 0)
    ),
    "mean": Row(metrics.mean(losses), "classes", lambda x, y: np.mean(cross_entropy(x, y))),
    "perplexity": Row(
        metrics.perplexity(), "classes", lambda x, y: np.exp(np.mean(cross_entropy(x, y)))
    ),
    "confusion_matrix": Row(
        metrics.confusion_matrix(C), "classes", lambda x, y: cm(y, x.argmax(-1), labels=range(C))
    ),
    "roc_auc": Row(metrics.roc_auc(6), "scores", roc_auc),
    "average_precision": Row(metrics.average_precision(6), "scores", average_precision),
    "calibration_error": Row(
        metrics.calibration_error(5), "classes", functools.partial(calibration_error, 5)
    ),
    "mean_squared_error": Row(
        metrics.mean_squared_error(), "numbers", lambda x, y: sklearn.mean_squared_error(y, x)
    ),
    "r2": Row(metrics.r2(-2.5), "numbers", r2),
}
AVERAGED = {}
for name in ("precision", "recall", "f1"):
    builder, score = getattr(metrics, name), getattr(sklearn, f"{name}_score")
    for average in ("macro", "micro", None):
        oracle = functools.partial(of_classes, score, average)
        AVERAGED[name, average] = Row(builder(C, average=average), "classes", oracle)
    AVERAGED[name, "binary"] = Row(builder(), "binary", functools.partial(binary, score))
for key in (("precision", None), ("recall", "micro"), ("f1", "macro"), ("f1", "binary")):
    TABLE[f"{key[0]}_{key[1]}"] = AVERAGED[key]


def draw(kind, rng, n=N):
    """Outputs and labels; some classes do not occur, and binary logits of 0 do."""
    if kind == "classes":
        among = rng.choice(C, size=rng.integers(1, C + 1))
        return rng.normal(size=(n, C)).astype("float32") * 2, rng.choice(among, n).astype("int32")
    if kind == "numbers":
        return tuple(rng.normal(size=(2, n)).astype("float32"))
    outputs = rng.integers(-2, 3, n) if kind == "binary" else rng.integers(0, 11, n) / 10
    return outputs.astype("float32"), rng.integers(0, 2, n).astype("int32")


def draw_all(seed):
    rng = np.random.default_rng(seed)
    return {kind: draw(kind, rng) for kind in ("classes", "binary", "scores", "numbers")}


# All metrics go through one program: compiled one by one, these tests would take minutes.


def init_all():
    return {name: row.metric.init() for name, row in TABLE.items()}


def update_all(accumulators, data, mask=None):
    return {
        name: row.metric.update(accumulators[name], *data[row.kind], mask)
        for name, row in TABLE.items()
    }


def compute_all(accumulators):
    return {name: row.metric.compute(accumulators[name]) for name, row in TABLE.items()}


def values_of(data, mask=None, weights=None):
    return {name: row.metric.value(*data[row.kind], mask, weights) for name, row in TABLE.items()}


jit_update, jit_compute, jit_values = map(jax.jit, (update_all, compute_all, values_of))


def at_once(metric, *args):
    return jax.jit(metric.value)(*args)


def assert_close(got, want, rtol=2e-6, name=""):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol, err_msg=name)


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


# --- the values


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


@given(seed=SEEDS)
def test_averages_over_classes_are_scikit_learns(seed):
    data = draw_all(seed)
    values = jit_averaged(data)
    for name, (_, kind, oracle) in AVERAGED.items():
        outputs, labels = data[kind]
        assert_close(values["_".join(map(str, name))], oracle(outputs, labels), 5e-6, str(name))


@jax.jit
def jit_averaged(data):
    rows = {"_".join(map(str, name)): row for name, row in AVERAGED.items()}
    return {name: row.metric.value(*data[row.kind]) for name, row in rows.items()}


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
    data = {kind: (jnp.asarray(x, "bfloat16"), y) for kind, (x, y) in data.items()}
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
    values = jit_values(jax.tree.map(jnp.asarray, spoiled), None, np.float32(weights))
    assert_oracles(values, repeated)


# --- accumulators are sums


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


def test_a_million_updates_round_no_worse_than_one():
    """A float32 sum of a million times 0.1 is off by a percent; this one by its last digit."""
    metric = metrics.mean(lambda outputs, labels: outputs)

    @jax.jit
    def run(x):
        def body(accumulator, _):
            return metric.update(accumulator, x, x), None

        return metric.compute(jax.lax.scan(body, metric.init(), None, length=10**6)[0])

    np.testing.assert_allclose(run(jnp.float32([0.1])), np.float32(0.1), rtol=1.2e-7)


def test_small_addends_are_not_lost_beside_large_ones():
    """1 + 4000 times 2**-26, which one by one a float32 sum of 1 would not notice; and exactly."""
    metric = metrics.mean(lambda outputs, labels: outputs)
    update = jax.jit(metric.update)
    accumulator = metric.init()
    for x in [1.0] + [2.0**-26] * 4000 + [-1.0]:
        accumulator = update(accumulator, jnp.float32([x]), jnp.zeros(1))
    high, low = map(np.float64, accumulator["total"])
    assert high + low == 4000 * 2.0**-26


def test_infinite_values_stay_infinite():
    metric = metrics.mean(lambda outputs, labels: outputs)
    for values, want in (
        ([1, np.inf, 2], np.inf), ([-np.inf, 1, 1], -np.inf), ([np.inf, 1, -np.inf], np.nan),
        ([1, np.nan, 2], np.nan),
    ):  # fmt: skip
        accumulator = metric.init()
        for x in values:
            accumulator = metric.update(accumulator, jnp.float32([x]), jnp.zeros(1))
        np.testing.assert_equal(np.asarray(metric.compute(accumulator)), np.float32(want))


def test_counts_beyond_32_bits():
    """100 batches of 3 * 2**25 pixels; and 8 such accumulators, added."""
    from fnn.metrics.metric import add, no_sum, total

    def body(counts, n):
        return add(counts, n), None

    start = no_sum()
    counts, _ = jax.lax.scan(body, start, jnp.full(100, 3 * 2**25 + 1, jnp.int32))
    want = 100 * (3 * 2**25 + 1)
    high, low = map(float, counts)
    assert high + low == want > 2**33
    eight = jax.tree.map(lambda a: 8 * a, counts)
    np.testing.assert_allclose(total(eight), 8.0 * want, rtol=1e-7)
    high, low = map(float, add(eight, jnp.int32(7)))
    assert high + low == 8 * want + 7
    high, low = map(float, add(start, jnp.int32(2**31 - 1)))  # in one batch
    assert high + low == 2**31 - 1


# --- conventions


def test_accuracy_of_ties_nan_and_probabilities():
    nan = np.nan
    logits = jnp.float32([[1, 1], [1, 1], [nan, 1], [1, nan], [-np.inf, -np.inf], [np.inf, 1]])
    each = jax.jit(jax.vmap(metrics.accuracy().value))
    assert each(logits, jnp.array([0, 1, 1, 0, 0, 0])).tolist() == [1, 0, 0, 0, 1, 1]
    soft = jnp.float32([[0.4, 0.6], [0.5, 0.5], [nan, 1]])
    np.testing.assert_array_equal(each(jnp.float32([[0, 1]] * 3), soft), [1, 0, nan])


@pytest.mark.parametrize("bad", [-1, C, 2**31 - 1, -(2**31)])
def test_a_label_outside_is_nan(bad):
    data = draw_all(0)
    for kind in ("classes", "binary", "scores"):
        data[kind][1][3] = bad
    for name, value in jit_values(data, np.ones(N, bool)).items():
        assert np.isnan(value).all() or TABLE[name].kind == "numbers", name


@given(lead=st.sampled_from([(), (0,), (3,), (2, 3)]), classes=st.sampled_from([1, 4]), seed=SEEDS)
def test_accuracy_takes_any_leading_axes_and_the_first_of_ties(lead, classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 2, (*lead, classes)).astype("float32")
    labels = rng.integers(0, classes, lead).astype("int32")
    right = metrics_oracles.accuracy(logits, labels)
    want = right.mean() if right.size else np.nan
    assert_close(at_once(metrics.accuracy(), logits, labels), want)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.uint32])
def test_labels_of_any_integer_dtype(dtype):
    """The number of classes need not fit the labels' dtype."""
    logits = np.random.default_rng(0).normal(size=(4, 257)).astype("float32")
    labels = np.array([0, 1, 99, logits[3, :100].argmax()])
    logits[3, labels[3]] += 9
    labels = jnp.asarray(labels, dtype)
    assert at_once(metrics.accuracy(), logits, labels) == 0.25
    assert at_once(metrics.f1(257, average="micro"), logits, labels) == 0.25


@pytest.mark.parametrize("dtype", [bool, jnp.uint8, jnp.bfloat16])
def test_binary_labels_of_any_dtype(dtype):
    logits, labels = jnp.float32([2, -1, 0.5, 3]), jnp.array([1, 0, 0, 1]).astype(dtype)
    assert at_once(metrics.binary_accuracy(), logits, labels) == 0.75
    assert at_once(metrics.roc_auc(), logits, labels) == 1


def test_a_mask_of_the_first_axes():
    """[B] and [B, T] masks of [B, T] tokens; () masks the one example there is."""
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    labels = jnp.array([[0, 1, 2], [3, 4, 0]])
    loss = oracles_batch.softmax_cross_entropy(np.float64(logits), np.asarray(labels))
    rows, tokens = jnp.array([True, False]), jnp.array([[1, 1, 0], [0, 0, 1]], bool)
    perplexity = metrics.perplexity()
    assert_close(at_once(perplexity, logits, labels, rows), np.exp(loss[0].mean()), rtol=1e-5)
    want = np.exp(loss[np.asarray(tokens)].mean())
    assert_close(at_once(perplexity, logits, labels, tokens), want, rtol=1e-5)
    assert_close(
        at_once(perplexity, logits, labels, jnp.array(True)), np.exp(loss.mean()), rtol=1e-5
    )
    assert np.isnan(at_once(perplexity, logits, labels, jnp.array(False)))


def test_a_class_without_examples_or_predictions():
    """Class 0 is right once, 1 never predicted, 2 never a label, 3 neither."""
    logits, labels = jnp.eye(4)[jnp.array([0, 2, 2])], jnp.array([0, 1, 0])
    nothing = jnp.float32([-1, -1, -1]), jnp.array([0, 0, 0])

    def measure():
        for build in (metrics.precision, metrics.recall, metrics.f1):
            each, macro = build(4, average=None), build(4)
            yield each.value(logits, labels), macro.value(logits, labels), build().value(*nothing)

    values = jax.jit(lambda: list(measure()))()
    wanted = [1, 0, 0, np.nan], [0.5, 0, 0, np.nan], [2 / 3, 0, 0, np.nan]
    for (each, macro, none), want in zip(values, wanted, strict=True):
        assert_close(each, want)
        assert_close(macro, np.nanmean(want))
        assert np.isnan(none)


def test_rows_with_nan_predict_no_class():
    logits, labels = jnp.float32([[np.nan, 0], [0, 1]]), jnp.array([0, 1])

    @jax.jit
    def values(logits, labels):
        each = [
            m(2, average=None).value(logits, labels) for m in (metrics.recall, metrics.precision)
        ]
        micro = metrics.f1(2, average="micro").value(logits, labels)
        of_two = [
            m().value(logits[:, 0], labels) for m in (metrics.binary_accuracy, metrics.roc_auc)
        ]
        cells = metrics.confusion_matrix(2).value(logits, labels)
        return each, micro, of_two, cells, metrics.calibration_error().value(logits, labels)

    each, micro, of_two, cells, calibration = values(logits, labels)
    assert_close(each, [[0, 1], [0, 1]])
    assert_close(micro, 2 / 3)
    np.testing.assert_array_equal(of_two, [0, np.nan])
    assert np.isnan(cells).all() and np.isnan(calibration)


AREAS = {bits: jax.jit(metrics.roc_auc(bits).value) for bits in (1, 4, 10)}


def shared_bits(scores, bits):
    """What is left of scores as the docstring says: their distance from 0, or 1, to some bits."""
    far = np.where(scores < 0.5, scores, scores - np.float32(1))
    fraction, exponent = np.frexp(np.float64(far))
    left = np.ldexp(np.trunc(np.ldexp(fraction, bits + 1)), exponent - bits - 1)
    return np.where(scores < 0.5, left, 2 + left)


@given(seed=SEEDS, bits=st.sampled_from(list(AREAS)), scale=st.sampled_from([0.3, 1, 1e3, 1e-9]))
def test_the_area_is_within_its_bound(seed, bits, scale):
    """Half the fraction of pairs that share their bits, counted pair by pair; ties count half."""
    rng = np.random.default_rng(seed)
    p, labels = (scale * rng.normal(size=40)).astype("float32"), np.arange(40) % 2
    at = shared_bits(p, bits)
    shared = np.mean([[a == b for a in at[labels == 1]] for b in at[labels == 0]])
    got = AREAS[bits](p, labels)
    assert abs(got - sklearn.roc_auc_score(labels, p)) <= shared / 2 + 1e-6
    assert_close(got, sklearn.roc_auc_score(labels, at))


# Scores of 20,000 examples, by a draw of normal numbers higher by 1 for those of class 1.
SCORES = {
    "plain": lambda z: z,
    "saturated below": lambda z: z - 12,
    "saturated above": lambda z: z + 100,
    "tied": lambda z: np.round(z),
    "infinite": lambda z: np.where(abs(z - 0.5) > 1.5, np.copysign(np.inf, z), z),
    "huge": lambda z: z * 1e18,
    "probabilities": lambda z: 1 / (1 + np.exp(-z)),
    "probabilities near 0": lambda z: np.exp(z - 25),
    "probabilities near 1": lambda z: 1 - np.exp(z - 11),
}


@pytest.mark.parametrize("rate", [0.5, 0.01])
@pytest.mark.parametrize("name", SCORES)
def test_areas_are_scikit_learns(name, rate):
    rng = np.random.default_rng(1)
    labels = rng.random(20_000) < rate
    scores = SCORES[name](rng.normal(size=labels.size) + labels).astype("float32")
    weights = rng.integers(0, 4, labels.size).astype("float32")
    got = areas(scores, labels, weights)
    scores = np.clip(scores, -1e20, 1e20)  # scikit-learn takes no infinities
    for i, w in enumerate((None, weights)):
        exact = sklearn.roc_auc_score(labels, scores, sample_weight=w)
        np.testing.assert_allclose(got[0][i], exact, atol=0.0005)
        exact = sklearn.average_precision_score(labels, scores, sample_weight=w)
        np.testing.assert_allclose(got[1][i], exact, atol=0.005)


@jax.jit
def areas(scores, labels, weights):
    return [
        [metric.value(scores, labels, None, w) for w in (None, weights)]
        for metric in (metrics.roc_auc(), metrics.average_precision())
    ]


def test_areas_of_infinities_nan_and_one_class():
    for metric in (metrics.roc_auc(), metrics.average_precision()):
        area = jax.jit(metric.value)
        assert area(jnp.float32([-np.inf, -3e38, 3e38, np.inf]), jnp.array([0, 0, 1, 1])) == 1
        p, labels = jnp.float32([0, 1, np.nan]), jnp.array([0, 1, 1])
        assert np.isnan(area(p, labels, jnp.array([True, True, True])))
        assert area(p, labels, jnp.array([True, True, False])) == 1
        assert np.isnan(area(p[:2], jnp.ones(2, int))) and np.isnan(area(p[:2], jnp.zeros(2, int)))


def test_calibration_of_a_million_is_in_float32s_digits():
    """A sum of a million one by one in float32 would lose the fourth digit."""
    logits = np.tile(np.float32([[1.3, 0]]), (10**6, 1))
    labels = np.zeros(10**6, "int32")
    want = 1 - 1 / (1 + np.exp(-np.float64(np.float32(1.3))))
    got = jax.jit(metrics.calibration_error().value)(logits, labels)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_calibration_bins_are_closed_above():
    """Confidence 1/2, wrong, is in bin (0, 1/2]; 3/4, right, in the other."""
    logits, labels = jnp.log(jnp.float32([[1, 1], [3, 1]])), jnp.array([1, 0])
    assert_close(at_once(metrics.calibration_error(2), logits, labels), (0.5 + 0.25) / 2)


def test_the_shift_of_r2_keeps_the_digits():
    rng = np.random.default_rng(0)
    targets = (3000 + rng.normal(size=1000)).astype("float32")
    outputs = (targets + rng.normal(size=1000) / 2).astype("float32")
    want = r2(np.float64(outputs), np.float64(targets))
    swept = jax.jit(lambda shift, targets: metrics.r2(shift).value(outputs, targets))
    for shift in (3000.0, 2998.0):
        np.testing.assert_allclose(swept(shift, targets), want, rtol=1e-5)
    assert abs(swept(0.0, targets) - want) > 1e-3  # which is why there is a shift
    assert np.isnan(swept(0.0, np.ones_like(targets)))


def test_means_of_trees_bools_and_integers_and_their_gradient():
    hit = metrics.mean(lambda outputs, labels: outputs["a"] > labels)
    assert hit.value({"a": jnp.arange(4.0)}, jnp.ones(4)) == 0.5
    far = metrics.mean(lambda outputs, labels: jnp.abs(outputs - labels))
    assert far.value(jnp.array([1, 2]), jnp.array([2, 4])) == 1.5
    square = metrics.mean_squared_error()
    x, y = jnp.float32([1, 2, 5]), jnp.float32([0, 0, 1])
    np.testing.assert_allclose(jax.grad(square.value)(x, y), 2 * (x - y) / 3, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jvp(lambda x: square.value(x, y), (x,), (x,))[1], 50 / 3, rtol=1e-6
    )


def test_no_ranks_are_promoted():
    data = draw_all(0)
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(values_of, data, np.ones(N, bool), np.ones(N, "float32"))
        for row in AVERAGED.values():
            jax.eval_shape(row.metric.value, *data[row.kind])


# --- wrong inputs


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


def outcome(call, *args):
    try:
        call(*args)
    except errors.FnnError as error:
        return error
    return None


def same_under_jit(call, *args):
    """The error of a call, after checking that it is the same, traced."""
    traced = outcome(jax.eval_shape, call, *args)
    if traced is not None:
        eager = outcome(call, *args)
        assert str(eager) == str(traced) and type(eager) is type(traced)
    return traced


def assert_teaches(error, name, kind=errors.FnnError):
    assert isinstance(error, kind), error
    assert error.expected and error.got and error.mend and len(str(error)) < 400
    assert str(error) == f"{name}: expected {error.expected}, got {error.got}; {error.mend}"


def legal(name):
    build, options, kind = BUILDERS[name]
    outputs, labels = draw(kind, np.random.default_rng(0), n=6)
    return build(**options), jnp.asarray(outputs), jnp.asarray(labels)


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
        error = same_under_jit(metric.value, outputs, jnp.zeros(shape, labels.dtype))
        assert_teaches(error, name, errors.ShapeError)
        assert str(shape) in str(error)
    for shape in other_shapes(outputs.shape):
        error = same_under_jit(metric.value, jnp.zeros(shape, outputs.dtype), labels)
        if error is None:  # another number of classes is legal where none was said
            assert name in ("accuracy", "top_k", "perplexity", "calibration_error")
            assert shape[:-1] == labels.shape
            continue
        assert_teaches(error, name, errors.ShapeError)
    for shape in other_shapes(labels.shape):
        error = same_under_jit(metric.value, outputs, labels, jnp.zeros(shape, bool))
        if shape != ():
            assert_teaches(error, name, errors.ShapeError)


@each_builder
def test_wrong_dtypes(name):
    metric, outputs, labels = legal(name)
    for dtype in (jnp.int32, bool, jnp.complex64):
        error = same_under_jit(metric.value, outputs.astype(dtype), labels)
        assert_teaches(error, name, errors.DtypeError)
    error = same_under_jit(metric.value, outputs, labels.astype(jnp.complex64))
    assert_teaches(error, name, errors.DtypeError)
    if outputs.ndim == 2:
        error = same_under_jit(metric.value, outputs, labels == 1)
        assert_teaches(error, name, errors.DtypeError)
    for dtype in (jnp.int32, jnp.float32, jnp.complex64):
        error = same_under_jit(metric.value, outputs, labels, jnp.ones(6, dtype))
        assert_teaches(error, name, errors.DtypeError)
        assert "mask != 0" in str(error)
    error = same_under_jit(metric.value, outputs, labels, None, jnp.ones(6, bool))
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


def test_wrong_functions_and_their_values():
    for bad in (None, 3, "accuracy", metrics.accuracy, metrics.accuracy(), jnp.ones(2)):
        assert_teaches(outcome(metrics.mean, bad), "mean", errors.OptionError)
    x = jnp.ones(3)
    for wrong, kind in (
        (None, errors.InputError), (1.5, errors.InputError), ([x, x], errors.InputError),
        (x.astype(jnp.complex64), errors.DtypeError),
    ):  # fmt: skip

        def error_rate(outputs, labels, wrong=wrong):
            return wrong

        error = outcome(metrics.mean(error_rate).value, x, x)
        assert_teaches(error, "mean(error_rate)", kind)
    error = outcome(metrics.mean(lambda x, y: x.mean()).value, x, x, x > 0)
    assert_teaches(error, "mean(<lambda>)", errors.ShapeError)
    assert_teaches(outcome(metrics.roc_auc, 17), "roc_auc", errors.OptionError)


# --- in training


def test_the_step_and_the_evaluator_take_metrics_and_functions():
    """The mean of batches' F1 is not that of all 10 examples, the accumulated one is."""
    rng = np.random.default_rng(0)
    net, tx = fnn.dense(3), fnn.optim.sgd(0.0)
    data = {
        "image": rng.normal(size=(10, 5)).astype("float32"),
        "label": rng.integers(0, 3, 10).astype("int32"),
    }
    measures = {
        "f1": metrics.f1(3),
        "cells": metrics.confusion_matrix(3),
        "loss_": fnn.losses.softmax_cross_entropy,
        "accuracy": metrics.accuracy(),
    }
    ts = fnn.train.init(net, tx, jax.random.key(0), (1, 5))
    logits = np.float64(net(ts.params, data["image"]))
    guess, labels = logits.argmax(-1), data["label"]
    want = {
        "f1": sklearn.f1_score(labels, guess, average="macro"),
        "cells": sklearn.confusion_matrix(labels, guess, labels=range(3)),
        "loss_": np.mean(oracles_batch.softmax_cross_entropy(logits, labels)),
        "accuracy": np.mean(guess == labels),
    }
    step = fnn.train.step(fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, measures), tx)
    _, stepped = step(ts, data)  # all 10
    assert list(stepped) and set(stepped) == {"loss", *want}
    for name, expected in want.items():
        assert_close(stepped[name], expected, 1e-5, name)
    for batch_size in (4, 64):
        evaluate = fnn.train.evaluator(net, data, measures, batch_size=batch_size)
        measured = evaluate(ts)
        assert list(measured) == list(want)
        for name, expected in want.items():
            assert_close(measured[name], expected, 1e-5, name)
    _, history = fnn.train.fit(
        step, ts, data, epochs=2, batch_size=10, progress=False, evaluate=evaluate
    )
    for part in ("train", "eval"):
        assert history[part]["cells"].shape == (2, 3, 3)


def test_a_metric_of_the_step_need_not_be_differentiable():
    def sorted_on_the_host(outputs, labels):
        like = jax.ShapeDtypeStruct(labels.shape, jnp.float32)
        return jax.pure_callback(lambda x: np.float32(x[:, 0]), like, outputs)

    net = fnn.dense(2)
    loss = fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, {"host": sorted_on_the_host})
    tx = fnn.optim.sgd(0.1)
    ts = fnn.train.init(net, tx, jax.random.key(0), (1, 3))
    batch = {"image": jnp.ones((2, 3)), "label": jnp.array([0, 1])}
    _, measured = fnn.train.step(loss, tx)(ts, batch)
    assert_close(measured["host"], net(ts.params, batch["image"])[:, 0].mean())


def test_uncalled_builders_and_other_things_are_refused():
    net = fnn.dense(2)
    data = {"image": np.ones((2, 3), "float32"), "label": np.array([0, 1])}
    for bad in (metrics.accuracy, metrics.mean, 3, None, "accuracy"):
        for make in (
            lambda m: fnn.train.supervised(net, fnn.losses.softmax_cross_entropy, m),
            lambda m: fnn.train.evaluator(net, data, m),
        ):
            error = outcome(make, {"hit": bad})
            assert isinstance(error, errors.OptionError)
            assert "metric hit" in str(error) and "accuracy()" in error.mend
    assert "accuracy, which builds" in str(
        outcome(fnn.train.evaluator, net, data, {"hit": metrics.accuracy})
    )
    assert isinstance(
        outcome(fnn.train.evaluator, net, data, [metrics.accuracy()]), errors.InputError
    )
