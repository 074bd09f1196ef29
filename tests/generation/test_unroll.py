"""A cell that is run on its own outputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fnn
from fnn import errors
from tests.layers.recurrent import oracles
from tests.layers.recurrent.support import at, cast, close, key, normal, same, spread
from tests.support import asarray, same_under_jit

V, E, H, T = 5, 2, 3, 6  # vocabulary, embedding, features, steps

CELL = fnn.cells.serial(embed=fnn.embedding(V, E), rnn=fnn.cells.gru(H), head=fnn.dense(V))
P = spread(CELL.init(key(), None, np.zeros(1, np.int32))[0], 3)
P["head"]["kernel"] *= 3  # so that no two logits come near each other
PARAMS = cast(P, "float32")
TOKENS = np.random.default_rng(0).integers(0, V, (4, T)).astype(np.int32)


def language_model(p, h, token):
    h, _ = oracles.gru_cell(p["rnn"], h, p["embed"]["embedding"][token])
    return h, h @ p["head"]["kernel"] + p["head"]["bias"]


def constant(logits):
    """A cell whose logits are always the same, whatever comes in."""
    logits = asarray(logits, jnp.float32)

    def step(carry, x):
        return carry, jnp.broadcast_to(logits, (*x.shape, len(logits)))

    return fnn.cells.as_cell(step, lambda x: jnp.zeros(x.shape))


def drawn_after_one(logits, n=20_000, steps=3, seed=0, **options):
    """[n, steps]: what follows one given token, by frequency independent of it."""
    x = jnp.zeros((n, steps + 1), jnp.int32)
    ones = jnp.ones(n, jnp.int32)
    run = jax.jit(
        lambda x, key: fnn.unroll_generate(
            constant(logits), {}, x, lengths=ones, key=key, **options
        )[0]
    )
    return np.array(run(x, key(seed)))[:, 1:]


def greedy(y):
    return int(np.argmax(y))


RUN = jax.jit(partial(fnn.unroll_generate, CELL, temperature=0.0))


@given(
    lengths=st.lists(st.integers(1, T), min_size=4, max_size=4),
    holes=st.booleans(),
    begun=st.booleans(),
)
def test_the_most_likely_continuation_is_the_loops(lengths, holes, begun):
    given_ = np.arange(T) < np.array(lengths)[:, None]
    if holes:
        given_ = np.roll(given_, 2, axis=1)
        given_[:, 0] = True
    carry = normal(4, H, seed=sum(lengths)) if begun else np.zeros((4, H), np.float32)
    own = {"rnn": asarray(carry)} if begun else None
    known = {"given": given_} if holes else {"lengths": np.array(lengths)}
    x, y, end = RUN(PARAMS, TOKENS, **known, carry=own)
    assert x.dtype == TOKENS.dtype and y.shape == (4, T, V)
    for i in range(4):
        wanted = oracles.generate(
            language_model, P, np.float64(carry[i]), TOKENS[i], given_[i], greedy
        )
        np.testing.assert_array_equal(x[i], wanted[0])
        close((y[i], end["rnn"][i]), wanted[1:])


def test_all_inputs_given_is_the_plain_run():
    net = fnn.rnn(CELL, feature_axes=0, return_carry=True)
    x, y, carry = fnn.unroll_generate(CELL, PARAMS, TOKENS, lengths=np.full(4, T), key=key())
    np.testing.assert_array_equal(x, TOKENS)
    close((y, carry), net(PARAMS, TOKENS))
    x, y, carry = fnn.unroll_generate(CELL, PARAMS, TOKENS[0], np.ones(T, bool), key=key())
    close((y, carry), net(PARAMS, TOKENS[0]))


def test_leading_axes_are_any():
    lengths = np.array([[1, 3], [2, 6]])
    x, y, carry = RUN(PARAMS, TOKENS.reshape(2, 2, T), lengths=lengths)
    for i in np.ndindex(2, 2):
        one = RUN(PARAMS, TOKENS.reshape(2, 2, T)[i], lengths=asarray(lengths[i]))
        np.testing.assert_array_equal(x[i], one[0])
        close((y[i], at(carry, i)), one[1:])


def test_any_prompt_length_is_one_program():
    traces = []

    @jax.jit
    def run(lengths, temperature):
        traces.append(None)
        return fnn.unroll_generate(
            CELL, PARAMS, TOKENS, lengths=lengths, key=key(), temperature=temperature
        )[0]

    for n in range(1, T + 1):
        x = run(np.array([n, 1, T, 2]), 0.5 + n)
        np.testing.assert_array_equal(x[0, :n], TOKENS[0, :n])
    assert len(traces) == 1


def test_going_on_from_a_carry_and_an_unfinished_sequence():
    """The first half, then the second from its carry and its last input."""
    whole, y, end = RUN(PARAMS, TOKENS, lengths=np.full(4, 2))
    first, _, carry = RUN(PARAMS, TOKENS[:, :4], lengths=np.full(4, 2))
    same(first, whole[:, :4])
    start = jnp.argmax(y[:, 3], -1).astype(jnp.int32)  # what follows the first half
    np.testing.assert_array_equal(start, whole[:, 4])
    begin = jnp.stack([start, jnp.zeros_like(start)], 1)
    second, y2, last = RUN(PARAMS, begin, lengths=np.full(4, 1), carry=carry)
    same(second, whole[:, 4:])
    close((y2, last), (y[:, 4:], end))


def test_the_first_of_k_and_temperatures_near_zero_are_greedy():
    wanted = RUN(PARAMS, TOKENS, lengths=np.ones(4, int))[0]
    for options in ({"top_k": 1}, {"temperature": 1e-6}, {"top_k": 1, "temperature": 50.0}):
        x, y, _ = fnn.unroll_generate(
            CELL, PARAMS, TOKENS, lengths=np.ones(4, int), key=key(), **options
        )
        np.testing.assert_array_equal(x, wanted)
        assert np.isfinite(y).all()


LOGITS = np.array([2.0, -1.0, 0.5, 0.0, 1.0])


def softmax(v):
    return np.exp(v - v.max()) / np.exp(v - v.max()).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0, 1e6])
def test_inputs_are_drawn_from_the_softmax(temperature):
    x = drawn_after_one(LOGITS, temperature=temperature)
    wanted = softmax(LOGITS / temperature)
    for t in range(x.shape[1]):
        found = np.bincount(x[:, t], minlength=V) / len(x)
        np.testing.assert_allclose(found, wanted, atol=0.02)  # 5 deviations are 0.018
    both = np.zeros((V, V))
    np.add.at(both, (x[:, 0], x[:, 1]), 1 / len(x))
    np.testing.assert_allclose(both, np.outer(wanted, wanted), atol=0.02)  # steps independent


@pytest.mark.parametrize("k", [2, 3, 5])
def test_only_the_k_most_likely_are_drawn(k):
    x = drawn_after_one(LOGITS, top_k=k)
    best = np.argsort(-LOGITS)[:k]
    wanted = np.zeros(V)
    wanted[best] = softmax(LOGITS[best])
    np.testing.assert_allclose(np.bincount(x.ravel(), minlength=V) / x.size, wanted, atol=0.01)
    assert set(np.unique(x)) == set(best)


def test_of_equal_logits_no_more_than_k_are_drawn():
    assert set(np.unique(drawn_after_one(np.array([0.0, 1.0, 1.0, -1.0]), n=200, top_k=1))) == {1}
    assert len(np.unique(drawn_after_one(np.zeros(5), n=200, top_k=3))) == 3


def test_what_is_drawn_depends_on_the_key_alone():
    a, b, other = (drawn_after_one(LOGITS, n=50, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != other).mean() > 0.4


def test_impossible_tokens_are_never_drawn():
    x = drawn_after_one(np.array([0.0, -np.inf, 0.0, -np.inf, 0.0]), n=2000)
    assert set(np.unique(x)) == {0, 2, 4}


def test_continuous_outputs_come_in_again():
    cell = fnn.cells.serial(rnn=fnn.cells.lstm(H), out=fnn.dense(E))
    x = normal(3, T, E)
    p = spread(cell.init(key(), None, x[:, 0])[0])
    lengths = np.array([1, 3, T])

    def step(p, carry, x):
        carry, y = oracles.lstm_cell(p["rnn"], carry, x)
        return carry, y @ p["out"]["kernel"] + p["out"]["bias"]

    zero = np.zeros(H)
    run = jax.jit(
        lambda p, x, n: fnn.unroll_generate(
            cell, p, x, lengths=n, next_input=lambda key, y: jnp.sin(y)
        )
    )
    filled, y, carry = run(cast(p, "float32"), x, lengths)
    for i, n in enumerate(lengths):
        wanted = oracles.generate(step, p, (zero, zero), x[i], np.arange(T) < n, np.sin)
        close((filled[i], y[i], at(carry["rnn"], i)), wanted)


def test_noise_of_next_input_is_new_at_every_step():
    cell = fnn.cells.as_cell(lambda c, x: (c, jnp.zeros_like(x)), jnp.zeros_like)

    def noise(key, y):
        return y + jax.random.normal(key, y.shape, y.dtype)

    x, _, _ = fnn.unroll_generate(
        cell, {}, jnp.zeros((400, 6, 4)), lengths=np.ones(400, int), key=key(), next_input=noise
    )
    drawn = np.array(x[:, 1:]).transpose(1, 0, 2).reshape(5, -1)
    np.testing.assert_allclose(drawn.mean(1), 0, atol=0.12)
    np.testing.assert_allclose(drawn.std(1), 1, atol=0.1)
    assert abs(np.corrcoef(drawn)[~np.eye(5, dtype=bool)]).max() < 0.12


def test_gradients_flow_through_inputs_that_were_generated():
    cell = fnn.cells.simple_rnn(E, use_bias=False)
    p = {k: np.float64(v) for k, v in spread(cell.init(key(), None, (1, E))[0]).items()}
    x, along = np.random.default_rng(0).normal(size=(3, E)), {k: np.ones_like(p[k]) for k in p}

    def wanted(p):
        return oracles.generate(oracles.rnn_cell, p, np.zeros(E), x, [True, False, False],
                                lambda y: y)[1].sum()  # fmt: skip

    def loss(p, xs):
        return fnn.unroll_generate(cell, p, xs, lengths=jnp.array(1), next_input=lambda key, y: y)[
            1
        ].sum()

    with jax.enable_x64(True):
        grads = jax.grad(loss)(jax.tree.map(asarray, p), asarray(x))
    found = sum(np.asarray(g).sum() for g in grads.values())
    np.testing.assert_allclose(found, oracles.slope(wanted, p, along), rtol=1e-8)


# --- wrong inputs ----------------------------------------------------------------------------

OK = np.ones(4, np.int32)
FLOATS = np.ones((4, T, E), np.float32)
WRONG = {  # name: x, given or lengths, options, the kind of error, what its text says
    "lengths of another batch": (TOKENS, OK[:3], {}, errors.ShapeError, "(3,)"),
    "lengths of floats": (TOKENS, np.ones(4, np.float32), {}, errors.DtypeError, "lengths of int"),
    "steps of given": (TOKENS, np.ones((4, 3), bool), {}, errors.ShapeError, "(4, 3)"),
    "given that would broadcast": (
        TOKENS, np.ones((1, T), bool), {}, errors.ShapeError, "(1, 6)",
    ),
    "float given": (TOKENS, np.ones((4, T), np.float32), {}, errors.DtypeError, "float32"),
    "int given": (TOKENS, np.ones((4, T), int), {}, errors.DtypeError, "pass lengths as lengths="),
    "no key": (TOKENS, OK, {"key": None}, errors.RandomKeyError, "key="),
    "top_k of none": (TOKENS, OK, {"top_k": 0}, errors.OptionError, "top_k"),
    "top_k float": (TOKENS, OK, {"top_k": 2.5}, errors.OptionError, "top_k"),
    "top_k beyond the vocabulary": (TOKENS, OK, {"top_k": V + 1}, errors.FnnError, "top_k"),
    "negative temperature": (TOKENS, OK, {"temperature": -1.0}, errors.OptionError, "-1.0"),
    "temperature text": (TOKENS, OK, {"temperature": "hot"}, errors.OptionError, "hot"),
    "next_input that is no function": (TOKENS, OK, {"next_input": 3}, errors.OptionError, "3"),
    "next_input of another shape": (
        TOKENS, OK, {"next_input": lambda key, y: y}, errors.FnnError, "(4, 5)",
    ),
    "carry of another batch": (
        TOKENS, OK, {"carry": {"rnn": jnp.ones((3, H))}}, errors.ShapeError, "(3, 3)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_of_unroll_generate(name):
    x, given_, options, kind, text = WRONG[name]
    options, known = {"key": key(), **options}, "lengths" if given_.ndim == 1 else "given"
    error = same_under_jit(
        lambda x, n: fnn.unroll_generate(CELL, PARAMS, x, **{known: n}, **options), x, given_
    )
    assert isinstance(error, kind), error
    assert error.expected and error.got and error.mend and text in str(error)


@pytest.mark.parametrize("given_", [np.zeros(4, np.int32), np.arange(T) > 0 * OK[:, None]])
def test_a_first_input_that_is_not_given_is_refused_where_it_is_known(given_):
    known = {"lengths" if given_.ndim == 1 else "given": given_}
    with pytest.raises(errors.FnnError, match="first"):
        fnn.unroll_generate(CELL, PARAMS, TOKENS, **known, key=key())


def test_one_of_given_and_lengths_is_wanted():
    for known, got in (({}, "neither"), ({"given": TOKENS > -1, "lengths": OK}, "both")):
        with pytest.raises(errors.InputError, match=f"given, or lengths, got {got}"):
            fnn.unroll_generate(CELL, PARAMS, TOKENS, **known, key=key())


def test_floats_without_a_next_input_are_refused():
    cell = fnn.cells.gru(E)
    params, _ = cell.init(key(), None, FLOATS[:, 0])
    given_ = np.ones((4, T), bool)
    error = same_under_jit(
        lambda x: fnn.unroll_generate(cell, params, x, given_, key=key()), FLOATS
    )
    assert isinstance(error, errors.FnnError) and "next_input" in str(error)
    for wrong in (fnn.dense(3), fnn.cells.gru, fnn.gru(3), None):
        with pytest.raises(errors.FnnError):
            fnn.unroll_generate(wrong, params, FLOATS, given_, next_input=lambda key, y: y)
