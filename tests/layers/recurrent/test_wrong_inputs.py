"""Wrong inputs and options of recurrent cells and layers: fnn's own errors, the same under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from fnn.testing import mutations
from tests.layers.recurrent.support import C, H, key
from tests.support import assert_teaches, same_under_jit

# --- cells -----------------------------------------------------------------------------------

BAD_OPTIONS = {
    "features": lambda: fnn.cells.lstm(0),
    "features text": lambda: fnn.cells.gru("3"),
    "activation": lambda: fnn.cells.simple_rnn(3, activation="tanh"),
    "projection": lambda: fnn.cells.lstm(3, projection=0),
    "kernel_init": lambda: fnn.cells.mgu(3, kernel_init=fnn.initializers.orthogonal),
    "recurrent_init": lambda: fnn.cells.gru(3, recurrent_init=1.0),
    "bias_init": lambda: fnn.cells.simple_rnn(3, bias_init="zeros"),
    "recurrent_dropout": lambda: fnn.cells.lstm(3, recurrent_dropout=1.5),
    "recurrent_dropout nan": lambda: fnn.cells.gru(3, recurrent_dropout=float("nan")),
    "kernel_size": lambda: fnn.cells.conv_lstm(3, (0, 3)),
    "kernel_size empty": lambda: fnn.cells.conv_lstm(3, ()),
    "zoneout": lambda: fnn.cells.zoneout(fnn.cells.gru(3), 2.0),
    "zoneout text": lambda: fnn.cells.zoneout(fnn.cells.gru(3), "half"),
    "zoneout of each": lambda: fnn.cells.zoneout(fnn.cells.lstm(3), (0.5, -0.1)),
    "variational_dropout": lambda: fnn.cells.variational_dropout(-0.5),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_are_refused_by_the_builder(name):
    with pytest.raises(errors.OptionError) as found:
        BAD_OPTIONS[name]()
    error = found.value
    assert error.expected and error.got and error.mend and error.layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: fnn.cells.zoneout(fnn.dense(3), 0.5),
        lambda: fnn.cells.zoneout(fnn.cells.gru, 0.5),
        lambda: fnn.cells.zoneout(None, 0.5),
        lambda: fnn.cells.as_cell(fnn.dense, lambda x: x),
        lambda: fnn.cells.as_cell(lambda c, x: (c, x), None),
        lambda: fnn.cells.serial(fnn.cells.gru),
        lambda: fnn.cells.serial(fnn.dense(2), dense1=fnn.dense(2)),
        lambda: fnn.cells.serial(a=3),
    ],
)
def test_what_is_no_cell_is_refused(make):
    with pytest.raises(errors.FnnError) as found:
        make()
    assert found.value.expected and found.value.got and found.value.mend


ROWS = jnp.ones((2, C))
WRONG_CELL_CALLS = {  # name: cell, carry, x, the kind of error, what its text says
    "rank of x": (fnn.cells.gru(H), None, jnp.ones(()), errors.ShapeError, "()"),
    "last axis of x": (fnn.cells.gru(H), None, jnp.ones((2, 5)), errors.ShapeError, "(2, 5)"),
    "int x": (fnn.cells.lstm(H), None, jnp.ones((2, C), int), errors.DtypeError, "int32"),
    "narrow x": (
        fnn.cells.simple_rnn(H), None, ROWS.astype(jnp.float16), errors.DtypeError, "float16",
    ),
    "batch of carry": (fnn.cells.gru(H), jnp.ones((3, H)), ROWS, errors.ShapeError, "(3, 3)"),
    "one carry for all": (fnn.cells.gru(H), jnp.ones(H), ROWS, errors.ShapeError, "(3,)"),
    "carry that would broadcast": (
        fnn.cells.mgu(H), jnp.ones((1, H)), ROWS, errors.ShapeError, "(1, 3)",
    ),
    "size of carry": (
        fnn.cells.simple_rnn(H), jnp.ones((2, H + 1)), ROWS, errors.ShapeError, "(2, 4)",
    ),
    "dtype of carry": (
        fnn.cells.gru(H), jnp.ones((2, H), jnp.float16), ROWS, errors.DtypeError, "float16",
    ),
    "int carry": (fnn.cells.gru(H), jnp.ones((2, H), int), ROWS, errors.DtypeError, "int32"),
    "one array for two": (fnn.cells.lstm(H), jnp.ones((2, H)), ROWS, errors.FnnError, "(2, 3)"),
    "three for two": (fnn.cells.lstm(H), (jnp.ones((2, H)),) * 3, ROWS, errors.FnnError, "(2, 3)"),
    "two for one": (fnn.cells.gru(H), (jnp.ones((2, H)),) * 2, ROWS, errors.FnnError, "(2, 3)"),
    "sizes of two": (
        fnn.cells.lstm(H, projection=2), (jnp.ones((2, H)),) * 2, ROWS, errors.ShapeError, "(2, 3)",
    ),
    "dict": (fnn.cells.gru(H), {"h": jnp.ones((2, H))}, ROWS, errors.FnnError, "h"),
    "without its mask": (
        fnn.cells.gru(H, recurrent_dropout=0.5), jnp.ones((2, H)), ROWS, errors.FnnError, "(2, 3)",
    ),
    "carry of a stack": (
        fnn.cells.serial(fnn.cells.gru(H)), jnp.ones((2, H)), ROWS, errors.FnnError, "(2, 3)",
    ),
    "names in the carry of a stack": (
        fnn.cells.serial(fnn.cells.gru(H)), {"gru": jnp.ones((2, H))}, ROWS, errors.FnnError, "gru",
    ),
    "image without channels": (
        fnn.cells.conv_lstm(1, (3, 3)), None, jnp.ones((4, 4)), errors.ShapeError, "(4, 4)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CELL_CALLS)
@pytest.mark.parametrize("jit", [False, True])
def test_wrong_inputs_of_cells(name, jit):
    cell, carry, x, kind, text = WRONG_CELL_CALLS[name]
    good = (2, 4, 4, 1) if cell.name == "conv_lstm_cell" else (2, C)
    params, _ = cell.init(key(), None, good)
    with pytest.raises(kind) as found:
        (jax.jit(cell) if jit else cell)(params, carry, x)
    error = found.value
    assert error.expected and error.got and error.mend and text in str(error)
    assert str(error).startswith(cell.name)


@pytest.mark.parametrize(
    "cell",
    [
        fnn.cells.lstm(H, recurrent_dropout=0.5),
        fnn.cells.zoneout(fnn.cells.gru(H), 0.5),
        fnn.cells.variational_dropout(0.5),
        fnn.cells.serial(fnn.dropout(0.5), fnn.cells.gru(H)),
    ],
    ids=lambda cell: cell.name,
)
def test_training_without_a_key_is_refused(cell):
    params, _ = cell.init(key(), None, ROWS)
    net = fnn.rnn(cell)
    for call in (
        lambda: cell.apply(params, {}, None, ROWS, train=True),
        lambda: net.apply(params, {}, ROWS[None], train=True),
    ):
        with pytest.raises(errors.RandomKeyError, match="key="):
            call()


def test_a_missing_or_extra_param_is_refused():
    cell = fnn.cells.gru(H)
    params, _ = cell.init(key(), None, ROWS)
    for wrong in (
        {k: v for k, v in params.items() if k != "bias"},
        params | {"other": ROWS},
        params | {"kernel": params["kernel"].T},
        params | {"recurrent_kernel": params["recurrent_kernel"].astype(jnp.float16)},
    ):
        with pytest.raises(errors.FnnError):
            cell(wrong, None, ROWS)


# --- layers over sequences -------------------------------------------------------------------

X = np.ones((2, 4, C), np.float32)
MASK = np.ones((2, 4), bool)
N, NONE = np.arange(3, dtype=np.int32), (None, None, None)
GRU, LSTM = fnn.gru(H), fnn.lstm(H)
WRONG_CALLS = {  # name: net, inputs, the kind of error, what its text says
    "no time axis": (GRU, (X[0, 0],), errors.ShapeError, "(2,)"),
    "last axis": (GRU, (np.ones((2, 4, 5), np.float32),), errors.ShapeError, "last axis"),
    "int x": (LSTM, (np.ones((2, 4, C), np.int32),), errors.DtypeError, "int"),
    "narrow x": (LSTM, (X.astype(np.float16),), errors.DtypeError, "float16"),
    "time of mask": (GRU, (X, MASK[:, :3]), errors.ShapeError, "(2, 3)"),
    "one mask for all": (GRU, (X, MASK[0]), errors.ShapeError, "(4,)"),
    "mask that would broadcast": (GRU, (X, MASK[:1]), errors.ShapeError, "(1, 4)"),
    "float mask": (GRU, (X, MASK.astype(np.float32)), errors.DtypeError, "float32"),
    "lengths as mask": (GRU, (X, N[:2]), errors.DtypeError, "pass lengths as lengths="),
    "flags of ints": (LSTM, (X, MASK.astype(int)), errors.DtypeError, "mask.astype(bool)"),
    "lengths as mask of lru": (fnn.lru(H, 4), (X, N[:2]), errors.DtypeError, "lengths="),
    "lengths as mask of both ways": (
        fnn.gru(H, bidirectional=True), (X, N[:2]), errors.DtypeError, "lengths=",
    ),
    "rank of lengths": (GRU, (X, *NONE, np.int32(3)), errors.ShapeError, "()"),
    "lengths for each step": (
        GRU, (X, *NONE, MASK.astype(np.int32)), errors.ShapeError, "(2, 4)",
    ),
    "number of lengths": (GRU, (X, *NONE, N), errors.ShapeError, "(3,)"),
    "float lengths": (
        GRU, (X, *NONE, np.ones(2, np.float32)), errors.DtypeError, "lengths of integers",
    ),
    "mask as lengths": (GRU, (X, *NONE, MASK[:, 0]), errors.DtypeError, "lengths of integers"),
    "batch of carry": (GRU, (X, None, np.ones((3, H), np.float32)), errors.ShapeError, "(3, 3)"),
    "one carry": (GRU, (X, None, np.ones((1, H), np.float32)), errors.ShapeError, "(1, 3)"),
    "dtype of carry": (GRU, (X, None, np.ones((2, H), np.float16)), errors.DtypeError, "float16"),
    "one for two": (LSTM, (X, None, np.ones((2, H), np.float32)), errors.FnnError, "(2, 3)"),
    "time of resets": (GRU, (X, None, None, MASK[:, :2]), errors.ShapeError, "(2, 2)"),
    "one resets for all": (GRU, (X, None, None, MASK[0]), errors.ShapeError, "(4,)"),
    "int resets": (GRU, (X, None, None, MASK.astype(np.int32)), errors.DtypeError, "int32"),
    "six inputs": (GRU, (X, *NONE, None, None), errors.InputError, "6"),
    "carry of two ways": (
        fnn.gru(H, bidirectional=True), (X, None, np.ones((2, H), np.float32)),
        errors.FnnError, "(2, 3)",
    ),
    "carry of two layers": (
        fnn.gru(H, layers=2), (X, None, np.ones((2, H), np.float32)), errors.FnnError, "(2, 3)",
    ),
    "carry of lru": (fnn.lru(H, 4), (X, None, (np.ones((2, 5), np.float32),) * 2), errors.FnnError,
                     "(2, 5)"),
    "mask of lru": (fnn.lru(H, 4), (X, MASK[:, :3]), errors.ShapeError, "(2, 3)"),
    "images": (
        fnn.rnn(fnn.cells.conv_lstm(1, (3, 3)), feature_axes=3), (np.ones((3, 4, 4), np.float32),),
        errors.ShapeError, "(3, 4, 4)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_inputs(name):
    net, xs, kind, text = WRONG_CALLS[name]
    placed = fnn.serial(inner=net)
    good = (2, 3, 4, 4, 1) if name == "images" else X
    params, _ = placed.init(key(), good)
    error = same_under_jit(lambda *xs: placed(params, *xs), *xs)
    assert isinstance(error, kind) and text in str(error)
    assert_teaches(error, error.path)
    assert error.path.split("/")[0] == "inner"


@pytest.mark.parametrize("lengths", [[5, 1], [-1, 2]])
def test_lengths_out_of_range_are_refused_where_they_are_known(lengths):
    lengths = np.array(lengths, np.int32)
    for net in (GRU, fnn.lru(H, 4), fnn.gru(H, bidirectional=True)):
        params, _ = net.init(key(), X)
        with pytest.raises(errors.FnnError, match="4") as found:
            net(params, X, *NONE, lengths)
        assert_teaches(found.value, found.value.path or found.value.layer)
        y = jax.jit(net)(params, X, *NONE, lengths)
        np.testing.assert_allclose(y, jax.jit(net)(params, X, *NONE, lengths.clip(0, 4)))


def test_another_number_of_inputs_is_refused_by_init_as_well():
    for net in (GRU, fnn.rnn(fnn.cells.gru(H)), fnn.bidirectional(fnn.cells.gru(H)), fnn.lru(H)):
        for xs in ((), (X, *NONE, None, None)):
            with pytest.raises(errors.InputError, match="input"):
                net.init(key(), *xs)


def test_state_for_another_batch_is_refused():
    net = fnn.gru(H, stateful=True)
    params, state = net.init(key(), X)
    for wrong in (
        lambda x: net.apply(params, state, np.ones((3, 4, C), np.float32))[0],
        *(lambda x, wrong=wrong: net.apply(params, wrong, x)[0] for _, wrong in mutations(state)),
        lambda x: net(params, x),
    ):
        error = same_under_jit(wrong, X)
        assert isinstance(error, errors.FnnError)
        assert error.layer in ("gru", "gru_cell")
        assert_teaches(error, error.layer)


BAD_BUILDS = {
    "checkpoint_every 0": lambda: fnn.rnn(fnn.cells.gru(3), checkpoint_every=0),
    "checkpoint_every text": lambda: fnn.rnn(fnn.cells.gru(3), checkpoint_every="all"),
    "truncate": lambda: fnn.rnn(fnn.cells.gru(3), truncate=-1),
    "truncate float": lambda: fnn.gru(3, truncate=2.5),
    "unroll": lambda: fnn.rnn(fnn.cells.gru(3), unroll=0),
    "feature_axes": lambda: fnn.rnn(fnn.cells.gru(3), feature_axes=-1),
    "merge": lambda: fnn.bidirectional(fnn.cells.gru(3), fnn.cells.gru(3), "max"),
    "merge none": lambda: fnn.bidirectional(fnn.cells.gru(3), fnn.cells.gru(3), None),
    "layers": lambda: fnn.lstm(3, layers=0),
    "layers bool": lambda: fnn.lstm(3, layers=True),
    "dropout": lambda: fnn.gru(3, layers=2, dropout=1.5),
    "dropout of one": lambda: fnn.gru(3, dropout="half"),
    "features": lambda: fnn.simple_rnn(0),
    "lru features": lambda: fnn.lru(0, 4),
    "lru hidden": lambda: fnn.lru(3, 0),
    "no cell": lambda: fnn.rnn(fnn.dense(3)),
    "a builder": lambda: fnn.rnn(fnn.cells.gru),
    "a layer over sequences": lambda: fnn.rnn(fnn.gru(3)),
    "nothing": lambda: fnn.rnn(None),
    "a function": lambda: fnn.rnn(jnp.tanh),
    "one way is no cell": lambda: fnn.bidirectional(fnn.cells.gru(3), fnn.dense(3)),
}


@pytest.mark.parametrize("name", BAD_BUILDS)
def test_builders_refuse(name):
    with pytest.raises(errors.FnnError) as found:
        BAD_BUILDS[name]()
    error = found.value
    assert error.expected and error.got and error.mend and error.layer


def test_directions_that_cannot_be_merged_are_refused():
    net = fnn.bidirectional(fnn.cells.gru(3), fnn.cells.gru(2), "sum")
    with pytest.raises(errors.ShapeError):
        net.init(key(), X)
    assert fnn.bidirectional(fnn.cells.gru(3), fnn.cells.gru(2)).init(key(), X)
