"""Buckets: every sequence in a batch of its bucket, padded, in an order of (key, epoch)."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fnn import errors
from fnn.data import bucketed, files, packed

KEY = jax.random.key(3)
SIZES = (3, 5, 9)


def sequences(lengths):
    return [{"tokens": np.full(t, i + 1, "u1"), "label": i} for i, t in enumerate(lengths)]


def made(sizes, size=2, key=KEY, **options):
    options = {"buckets": SIZES, "pad": {"tokens": 0}, "device": False} | options
    options = {"lengths": np.array(sizes, np.int32)} | options
    return bucketed(sequences(sizes), size, key, **options)


def counts(lengths):
    return [sum(low < t <= high for t in lengths) for low, high in ((-1, 3), (3, 5), (5, 9))]


lengths_ = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@given(lengths=lengths_, size=st.integers(1, 4), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_sequence_comes_once_padded_to_its_bucket(lengths, size, seed, epoch):
    stream = made(lengths, size, jax.random.key(seed), last="fill")
    batches = list(stream(epoch))
    assert len(batches) == len(stream) == sum(-(-n // size) for n in counts(lengths))
    seen = []
    for batch, mask in batches:
        width = batch["tokens"].shape[1]
        assert width in SIZES and batch["tokens"].dtype == np.uint8
        for row, label, length, real in zip(
            *map(batch.get, ("tokens", "label", "lengths")), mask, strict=True
        ):
            assert length == lengths[label] and width == next(b for b in SIZES if b >= length)
            assert row.tolist() == [label + 1] * length + [0] * (width - length)
            seen += [int(label)] * bool(real)
    assert sorted(seen) == list(range(len(lengths)))


def test_last_batches_are_dropped_by_bucket():
    lengths = [1, 2, 3, 4, 5, 4, 9, 9]
    stream = made(lengths)
    labels = [batch["label"].tolist() for batch in stream(0)]
    assert len(labels) == len(stream) == sum(n // 2 for n in counts(lengths)) == 3
    dropped = [
        set(range(8)) - set(sum((b["label"].tolist() for b in stream(e)), [])) for e in range(9)
    ]
    assert all(len(one) == 2 for one in dropped) and len(set(map(frozenset, dropped))) > 1


def test_the_order_is_that_of_key_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 10, 60).tolist()
    stream = made(lengths)

    def order(stream, epoch, start=0):
        return [batch["label"].tolist() for batch in stream(epoch, start)]

    assert order(stream, 1) == order(made(lengths), 1)
    keys = [
        jax.random.fold_in(k, 1) for k in (KEY, jax.random.fold_in(KEY, zlib.crc32(b"buckets")))
    ]
    examples, cuts = (np.asarray(jax.random.permutation(key, 60)) for key in keys)
    assert order(made(lengths, 1, buckets=(9,)), 1) == examples[cuts][:, None].tolist()
    assert order(stream, 1) != order(stream, 0) != order(made(lengths, key=jax.random.key(4)), 0)
    assert order(stream, 1, 4) == order(stream, 1)[4:]
    widths = [batch["tokens"].shape[1] for batch in stream(0)]
    assert widths != sorted(widths)  # buckets are mixed
    assert stream.order != made(lengths, key=jax.random.key(4)).order
    assert stream.order != made(lengths, buckets=(4, 9)).order


def test_a_function_gives_the_lengths():
    lengths = [2, 7, 3, 8]
    by_call = made(lengths, lengths=lambda example: len(example["tokens"]), key=None)
    assert [batch["label"].tolist() for batch in by_call(0)] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("lengths", "options", "match"),
    [
        (
            [1, 10, 12],
            {},
            "sequences of at most 9, the last of the buckets, got 2 longer ones, up to 12",
        ),
        (
            [1, 1, 4],
            {},
            "at least the 2 examples of a batch, got 1 of length 5; none of them would",
        ),
        ([1, 1], {"buckets": (5, 3)}, "buckets in rising order"),
        ([1, 1], {"buckets": ()}, "buckets to be a tuple"),
        ([1, 1], {"buckets": 5}, "buckets to be a tuple"),
        ([1, 1], {"lengths": [1]}, r"lengths, ints \[2\], at least 0"),
        ([1, 1], {"lengths": [1, -1]}, "at least 0"),
        ([1, 1], {"lengths": [1.0, 1.0]}, "lengths, ints"),
        ([1, 1], {"last": "all"}, "last to be one of drop, fill"),
        ([1, 1], {"pad": 0}, "pad to be a dict"),
        ([1, 1], {"pad": {}}, "pad to be a dict"),
        ([], {"last": "fill"}, "examples, got none"),
    ],
)
def test_what_would_be_lost_is_refused(lengths, options, match):
    with pytest.raises(errors.FnnError, match=f"bucketed: expected .*{match}"):
        made(lengths, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lengths": [1, 1, 2, 2]}, "example 2 with sequences of one length, at most 3"),
        ({"pad": {"words": 0}}, "example 0 to be a dict with words"),
        ({"transform": lambda e: e | {"lengths": 0}}, "'lengths' is the name of what is added"),
    ],
)
def test_sequences_that_are_not_as_said_are_refused(options, match):
    with pytest.raises(errors.FnnError, match=match):
        list(made([1, 1, 4, 4], key=None, **options)(0))


def test_an_example_without_a_length_is_named(tmp_path):
    np.save(tmp_path / "0.npy", np.zeros(2))
    (tmp_path / "1.npy").write_bytes(b"not an array")
    broken, options = files(tmp_path, np.load), {"buckets": (3,), "pad": {"x": 0}}
    with pytest.raises(
        errors.DataError, match=r"^bucketed: expected example 1 \(.*1.npy\) to be r"
    ):
        bucketed(broken, 1, None, lengths=len, **options)
    with pytest.raises(errors.DataError, match="^packed: expected example 1 .* 'int' has no"):
        packed([[1], 2], 3)


@pytest.mark.parametrize("value", [-1, 256, 0.5, np.nan, "0", None, [0, 0, 0]])
def test_what_a_sequence_cannot_hold_does_not_pad_it(value):
    with pytest.raises(errors.OptionError, match="tokens: expected a value to pad uint8 with, got"):
        list(made([1, 1], pad={"tokens": value})(0))


def test_masks_are_not_dropped():
    source = [{"tokens": np.ma.masked_equal([1, 2], 1)}]
    options = {"buckets": (3,), "lengths": [2], "pad": {"tokens": 0}}
    with pytest.raises(errors.InputError, match="source/tokens without a mask"):
        list(bucketed(source, 1, None, **options)(0))
    with pytest.raises(errors.InputError, match="sequences/0 without a mask"):
        packed([source[0]["tokens"]], 3)[0]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.complex64])
def test_each_feature_may_be_padded_by_a_value_of_its_own(dtype):
    source = [{"x": np.ones((t, 2), dtype)} for t in (1, 2)]
    options = {"buckets": (2,), "lengths": [1, 2], "pad": {"x": [0.1, np.nan]}, "device": False}
    (batch,) = bucketed(source, 2, None, **options)(0)
    want = np.array([[1, 1], [0.1, np.nan]], dtype)
    assert batch["x"].dtype == dtype
    np.testing.assert_array_equal(*(x.astype(np.complex64) for x in (batch["x"][0], want)))
