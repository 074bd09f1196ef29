"""Writing by caches and carries, against a loop that reads everything again for each token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import errors
from tests.generation.support import (
    CELL,
    CELL_PARAMS,
    LENGTHS,
    NET,
    PARAMS,
    PROMPTS,
    ROOM,
    WHOLE,
    C,
    V,
    constant_cell,
    log_softmax,
    logits_after,
    read_all,
    read_cell,
    table_cell,
    transformer,
    written,
)
from tests.support import assert_close, refused

STEPS = 6
WRITERS = {"network": (NET, PARAMS, read_all), "cell": (CELL, CELL_PARAMS, read_cell)}
KEY = jax.random.key(0)


def greedy(net, **fixed):
    def run(params, tokens, lengths, **options):
        options = {"temperature": 0.0} | fixed | options
        return fnn.generate(net, params, tokens, STEPS, lengths=lengths, **options)

    return jax.jit(run)


GREEDY = {name: greedy(net) for name, (net, *_) in WRITERS.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_the_likeliest_texts_are_those_without_a_cache(name):
    _, params, read = WRITERS[name]
    for lengths in (LENGTHS, LENGTHS[::-1].copy()):
        found = GREEDY[name](params, PROMPTS, lengths)
        assert found.tokens.shape == (4, STEPS) and (found.lengths == STEPS).all()
        for i, n in enumerate(lengths):
            tokens, log_probs = written(read, params, PROMPTS[i, :n], STEPS)
            assert found.tokens[i].tolist() == tokens
            np.testing.assert_allclose(found.log_probs[i], log_probs, atol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_in_the_padding_changes_nothing(name):
    params = WRITERS[name][1]
    wanted = GREEDY[name](params, PROMPTS, LENGTHS)
    for garbage in (-(2**31), -1, V, 2**31 - 1):
        padded = np.where(np.arange(5) < LENGTHS[:, None], PROMPTS, garbage).astype(np.int32)
        found = GREEDY[name](params, padded, LENGTHS)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_prompts_of_any_lengths_and_options_of_any_value_are_one_program():
    traces = []

    @jax.jit
    def run(lengths, **options):
        traces.append(None)
        return fnn.generate(NET, PARAMS, PROMPTS, 2, lengths=lengths, key=KEY, **options).tokens

    for n in range(1, 6):
        options = {"temperature": n / 2, "top_k": n, "top_p": 0.1 * n, "min_p": 0.01 * n}
        tokens = run(np.full(4, n), stop=np.array([n]), **options)
        assert ((tokens >= -1) & (tokens < V)).all()
    assert len(traces) == 1


def test_leading_axes_are_any_and_one_prompt_is_a_row():
    run, wanted = GREEDY["cell"], GREEDY["cell"](CELL_PARAMS, PROMPTS, LENGTHS)
    found = run(CELL_PARAMS, PROMPTS.reshape(2, 2, 5), LENGTHS.reshape(2, 2))
    np.testing.assert_array_equal(found.tokens.reshape(4, -1), wanted.tokens)
    one = run(CELL_PARAMS, PROMPTS[2], LENGTHS[2])
    np.testing.assert_array_equal(one.tokens, wanted.tokens[2])
    assert run(CELL_PARAMS, PROMPTS[:0], LENGTHS[:0]).tokens.shape == (0, STEPS)


@pytest.mark.parametrize("name", WRITERS)
def test_a_stop_token_ends_its_row_and_all_of_them_the_loop(name):
    net, params, read = WRITERS[name]
    plain = np.asarray(GREEDY[name](params, PROMPTS, LENGTHS).tokens)
    stop = np.unique([plain[0, 2], plain[1, 0]])
    found = GREEDY[name](params, PROMPTS, LENGTHS, stop=stop)
    for i, n in enumerate(LENGTHS):
        tokens, log_probs = written(read, params, PROMPTS[i, :n], STEPS, stop=stop)
        m = len(tokens)
        assert found.lengths[i] == m
        assert found.tokens[i].tolist() == tokens + [-1] * (STEPS - m)
        np.testing.assert_allclose(found.log_probs[i, :m], log_probs, atol=1e-5)
        assert (found.log_probs[i, m:] == 0).all()


def counting(cell):
    """The cell, and the list that it adds to whenever it runs."""
    ran = []

    def step(carry, x):
        jax.debug.callback(lambda: ran.append(None))
        return cell({}, carry, x)

    return fnn.cells.as_cell(step, lambda x: cell.carry({}, x)), ran


def test_the_loop_ends_when_all_rows_have():
    table = np.zeros((5, 3, 3), np.float32)
    table[:, :, 0], table[2, :, 1] = 5.0, 9.0  # 0 0 1 ...
    cell, ran = counting(table_cell(table))
    run = jax.jit(lambda x: fnn.generate(cell, {}, x, 5, temperature=0.0, stop=1))
    found = run(np.zeros((2, 1), np.int32))
    jax.effects_barrier()
    assert found.tokens.tolist() == [[0, 0, 1, -1, -1]] * 2 and len(ran) == 3


def test_samples_are_texts_of_their_own_after_one_reading():
    net, params, read = WRITERS["network"]
    run = jax.jit(
        lambda temperature: fnn.generate(
            net, params, PROMPTS, 4, lengths=LENGTHS, key=KEY, samples=3,
            temperature=temperature, repetition_penalty=np.float32([1, 1, 1, 1.5]),
        )
    )  # fmt: skip
    found = run(np.float32([0, 1, 1, 0]))
    assert found.tokens.shape == (4, 3, 4) and found.lengths.shape == (4, 3)
    assert len({tuple(text) for text in found.tokens[1].tolist()}) > 1
    wanted, _ = written(read, params, PROMPTS[0], 4)
    assert found.tokens[0].tolist() == [wanted] * 3
    for i, n in enumerate(LENGTHS):
        for j in range(3):  # each as likely as it says
            text = list(PROMPTS[i, :n])
            for token, log_prob in zip(found.tokens[i, j], found.log_probs[i, j], strict=True):
                logits = logits_after(read, params, text)
                np.testing.assert_allclose(log_prob, log_softmax(logits)[token], atol=1e-5)
                text.append(int(token))


def test_a_prompt_is_read_once_for_all_samples():
    cell, ran = counting(constant_cell(np.zeros(3)))
    run = jax.jit(lambda x: fnn.generate(cell, {}, x, 2, key=KEY, samples=4).tokens)
    run(np.zeros((1, 6), np.int32))
    jax.effects_barrier()
    assert len(ran) == 5 + 2


def penalized(penalty, prompt):
    """Picks as a penalty for repetition says, one token after another."""
    seen = set(map(int, prompt))

    def pick(logits):
        by = [penalty if i in seen else 1.0 for i in range(V)]
        token = np.argmax([x / b if x > 0 else x * b for x, b in zip(logits, by, strict=True)])
        seen.add(int(token))
        return token

    return pick


def test_repetition_costs():
    penalties = np.float32([1.0, 1.3, 2.0, 5.0])
    found = GREEDY["cell"](CELL_PARAMS, PROMPTS, LENGTHS, repetition_penalty=penalties)
    for i, n in enumerate(LENGTHS):
        pick = penalized(np.float64(penalties[i]), PROMPTS[i, :n])
        tokens, log_probs = written(read_cell, CELL_PARAMS, PROMPTS[i, :n], STEPS, pick)
        assert found.tokens[i].tolist() == tokens
        np.testing.assert_allclose(found.log_probs[i], log_probs, atol=1e-5)


def test_adjusted_logits_ban_tokens():
    banned = np.arange(V) < 3
    found = greedy(CELL, adjust=lambda logits: jnp.where(banned, -jnp.inf, logits))(
        CELL_PARAMS, PROMPTS, LENGTHS
    )
    for i, n in enumerate(LENGTHS):
        pick = lambda logits: np.argmax(np.where(banned, -np.inf, logits))  # noqa: E731
        tokens, log_probs = written(read_cell, CELL_PARAMS, PROMPTS[i, :n], STEPS, pick)
        assert found.tokens[i].tolist() == tokens and min(tokens) >= 3
        np.testing.assert_allclose(found.log_probs[i], log_probs, atol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_a_text_goes_on_where_it_ended(name):
    net, params, read = WRITERS[name]
    stop = int(GREEDY[name](params, PROMPTS, LENGTHS).tokens[1, 0])
    first = GREEDY[name](params, PROMPTS, LENGTHS, stop=stop)
    assert min(first.lengths) < STEPS
    last = np.take_along_axis(np.asarray(first.tokens), np.asarray(first.lengths)[:, None] - 1, 1)
    more = np.concatenate([last, [[2, 4], [3, 0], [1, 1], [0, 0]]], axis=1).astype(np.int32)
    known = {"carry": first.carry} if net.carry else {"state": first.state}
    run = jax.jit(lambda p, x, n, **kept: fnn.generate(net, p, x, 2, lengths=n, temperature=0.0,
                                                       **kept).tokens)  # fmt: skip
    lengths = np.array([1, 2, 3, 1], np.int32)
    rest = run(params, more, lengths, **known)
    for i, n in enumerate(LENGTHS):
        text = [*PROMPTS[i, :n], *first.tokens[i, : first.lengths[i]], *more[i, 1 : lengths[i]]]
        if len(text) + 1 <= ROOM:
            assert rest[i].tolist() == written(read, params, text, 2)[0]


def test_vmap_over_params_keys_and_temperatures():
    stacked = jax.tree.map(lambda a: np.stack([a, 0.5 * a]), PARAMS)
    many = jax.jit(jax.vmap(GREEDY["network"], (0, None, None)))(stacked, PROMPTS, LENGTHS)
    for i in range(2):
        params = jax.tree.map(lambda a, i=i: a[i], stacked)
        alone = GREEDY["network"](params, PROMPTS, LENGTHS)
        np.testing.assert_array_equal(many.tokens[i], alone.tokens)
        np.testing.assert_allclose(many.log_probs[i], alone.log_probs, atol=1e-5)

    def run(key, heat):
        return fnn.generate(CELL, CELL_PARAMS, PROMPTS, 4, key=key, temperature=heat, stop=1).tokens

    keys, heat = jax.random.split(KEY, 2), np.float32([0.0, 1.0])
    found, one = jax.jit(jax.vmap(run))(keys, heat), jax.jit(run)
    for i in range(2):
        np.testing.assert_array_equal(found[i], one(keys[i], heat[i]))


def test_a_network_without_segments_takes_prompts_of_one_length():
    net = fnn.serial(embed=fnn.embedding(V, C), rnn=fnn.lstm(C, stateful=True), head=fnn.dense(V))
    run = jax.jit(
        lambda **kept: fnn.generate(net, CELL_PARAMS, PROMPTS, 4, temperature=0.0, **kept)
    )
    found = run()
    for i in range(4):
        tokens, _ = written(read_cell, CELL_PARAMS, PROMPTS[i], 4)
        assert found.tokens[i].tolist() == tokens
    error = refused(
        lambda: fnn.generate(net, CELL_PARAMS, PROMPTS, 4, lengths=LENGTHS, temperature=0.0)
    )
    assert "without segments" in str(error)


def test_a_state_may_lack_its_caches_alone():
    net = fnn.serial(
        embed=fnn.frozen(fnn.embedding(V, C)), rnn=fnn.lstm(C, stateful=True), head=fnn.dense(V)
    )
    params, state = jax.jit(lambda key: net.init(key, PROMPTS))(KEY)
    kept = {"embed": state["embed"]}

    def run(state=None):
        return fnn.generate(net, params, PROMPTS, 3, temperature=0.0, state=state).tokens

    np.testing.assert_array_equal(jax.jit(run)(kept), jax.jit(run)(state))
    with pytest.raises(errors.ParamsError, match="pass the trained state"):
        run()


# --- logits that say nothing


def test_only_one_token_possible_is_that_one():
    logits = np.full(V, -np.inf)
    logits[3] = -1e30
    run = lambda x: fnn.generate(constant_cell(logits), {}, x, 3, key=KEY, top_p=0.5, top_k=5)  # noqa: E731
    found = jax.jit(run)(PROMPTS)
    assert (found.tokens == 3).all() and (found.log_probs == 0).all()


NOTHING = {
    "NaN": np.full(V, np.nan),
    "one NaN": np.r_[np.nan, np.zeros(V - 1)],
    "all impossible": np.full(V, -np.inf),
    "infinite": np.r_[np.zeros(V - 1), np.inf],
}


@pytest.mark.parametrize("name", NOTHING)
def test_logits_of_nothing_end_their_row_or_raise(name):
    table = np.zeros((3, V, V))
    table[:, :, 2] = 9.0
    table[1, 2] = NOTHING[name]  # after 2, at the second step
    table[0, 1], table[1, 4] = 9 * (np.arange(V) == 4), 9 * (np.arange(V) == 1)  # 1 4 1 goes round
    x = np.array([[0], [1]], np.int32)

    def run(x):
        return fnn.generate(table_cell(table), {}, x, 3, temperature=0.0, stop=V - 1)

    found = jax.jit(run)(x)
    assert found.tokens[0].tolist() == [2, -1, -1] and found.lengths[0] == 1
    assert np.isnan(found.log_probs[0, 1]) and found.log_probs[0, 2] == 0
    assert found.tokens[1].tolist()[:2] == [4, 1] and found.lengths[1] == 3
    error = refused(lambda: run(x), errors.InputError)
    assert "row (0,) at step 1" in str(error) and "nan_report" in error.mend


def test_a_full_cache_is_refused_where_it_is_known_and_ends_its_row_elsewhere():
    with pytest.raises(errors.InputError, match=f"no more than cache={ROOM} positions"):
        fnn.generate(NET, PARAMS, PROMPTS, ROOM - 3, lengths=LENGTHS, temperature=0.0)
    with pytest.raises(errors.InputError, match=f"no more than cache={ROOM} positions"):
        jax.jit(lambda x: fnn.generate(NET, PARAMS, x, ROOM - 3, temperature=0.0))(PROMPTS)
    found = jax.jit(
        lambda lengths: fnn.generate(NET, PARAMS, PROMPTS, 10, lengths=lengths, temperature=0.0)
    )(LENGTHS)
    room = np.minimum(10, ROOM + 1 - LENGTHS)
    np.testing.assert_array_equal(found.lengths, room)
    np.testing.assert_array_equal(np.isnan(found.log_probs).sum(1), room < 10)


def test_an_empty_prompt_is_refused_where_it_is_known_and_gives_nothing_elsewhere():
    none = np.array([0, 1, 0, 4], np.int32)
    with pytest.raises(errors.InputError, match="lengths of 1 to 5, got 0; begin an empty prompt"):
        fnn.generate(NET, PARAMS, PROMPTS, 3, lengths=none, temperature=0.0)
    found = GREEDY["network"](PARAMS, PROMPTS, none)
    assert found.lengths.tolist() == [0, STEPS, 0, STEPS] and (found.tokens[0] == -1).all()
    with pytest.raises(errors.ShapeError, match="begin with a token"):
        fnn.generate(NET, PARAMS, PROMPTS[:, :0], 3, temperature=0.0)


def test_low_precision_writes():
    found = greedy(fnn.cast(CELL, jnp.bfloat16))(CELL_PARAMS, PROMPTS, LENGTHS)
    assert (found.lengths == STEPS).all() and found.log_probs.dtype == jnp.float32
    tokens, log_probs = written(read_cell, CELL_PARAMS, PROMPTS[0], 1)
    assert_close(found.log_probs[0, :1], np.float32(log_probs), tolerance=0.1)


def test_wide_precision_writes():
    with jax.enable_x64(True):
        table = np.random.default_rng(0).normal(size=(9, V, V))
        cell = fnn.cells.as_cell(
            lambda t, token: (t + 1, jnp.asarray(table)[t, token]),
            lambda x: jnp.zeros(x.shape, jnp.int32),
        )
        options = {"top_k": np.array([1, 1]), "top_p": np.float64(0.9), "temperature": 2}
        run = jax.jit(lambda x, n: fnn.generate(cell, {}, x, 3, lengths=n, key=KEY, min_p=0.1,
                                                repetition_penalty=1.0, **options))  # fmt: skip
        found = run(np.array([[1, 2], [3, 0]]), np.array([2, 1]))
        assert found.log_probs.dtype == jnp.float64 and found.tokens.dtype == jnp.int32
    for row, (t, token) in enumerate([(1, 2), (0, 3)]):
        for i in range(3):
            log_probs = log_softmax(table[t + i, token])
            token = int(np.argmax(log_probs))
            assert found.tokens[row, i] == token
            np.testing.assert_allclose(found.log_probs[row, i], log_probs[token], rtol=1e-12)


# --- wrong inputs

WRONG = {  # name: what is changed, and what the error says
    "a network that remembers nothing": ({"net": WHOLE}, "transformer without a cache"),
    "no network": ({"net": None}, "a network or a cell"),
    "a carry for a network": ({"net": NET, "carry": jnp.zeros(3)}, "carry for a cell alone"),
    "floats as tokens": ({"tokens": np.ones((4, 5), np.float32)}, "tokens of integers"),
    "tokens outside the vocabulary": ({"tokens": PROMPTS + V}, "integers in 0 ... 6"),
    "lengths of another batch": ({"lengths": LENGTHS[:3]}, "lengths of integers (4,)"),
    "lengths of floats": ({"lengths": np.ones(4, np.float32)}, "lengths of integers"),
    "a length beyond T": ({"lengths": LENGTHS + 1}, "lengths of 1 to 5, got 6"),
    "no steps": ({"steps": 0}, "steps to be an int of at least 1"),
    "no key": ({"key": None}, "a key to draw from"),
    "negative temperature": ({"temperature": -1.0}, "temperature to be a number in [0, inf]"),
    "endless temperature": ({"temperature": float("inf")}, "got inf"),
    "top_k of none": ({"top_k": 0}, "top_k to be an int"),
    "top_k beyond the vocabulary": ({"top_k": V + 1}, "at most the 7 logits"),
    "top_p above 1": ({"top_p": 2.0}, "top_p"),
    "a stop word": ({"stop": "end"}, "stop to be a token"),
    "half a stop": ({"stop": 0.5}, "stop to be a token"),
    "no samples": ({"samples": 0}, "samples"),
    "adjusted to another shape": ({"adjust": lambda x: x[..., :2]}, "adjust to give logits"),
    "a state of something else": ({"net": NET, "state": {"other": 1}}, "also other"),
    "a carry of something else": ({"carry": {"other": 1}}, "carry like the first one"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_of_generate(name):
    changed, text = WRONG[name]
    given = {"net": CELL, "params": CELL_PARAMS, "tokens": PROMPTS, "steps": 2, "lengths": LENGTHS}
    error = refused(lambda: fnn.generate(**(given | {"key": KEY} | changed)))
    assert text in str(error), error
    assert error.expected and error.got and error.mend


def test_a_network_of_other_outputs_is_refused():
    cell = fnn.cells.serial(fnn.embedding(V, C), fnn.cells.gru(C), lambda y: y[..., 0])
    params, _ = cell.init(KEY, None, PROMPTS[:, 0])
    error = refused(lambda: fnn.generate(cell, params, PROMPTS, 2, key=KEY))
    assert "floating logits [..., V] for each token, (4, V)" in str(error)
    assert transformer(ROOM).specs(PROMPTS)[0] == WHOLE.specs(PROMPTS)[0]
