"""Networks that are built again compile nothing and keep no memory; functions told apart."""

import functools
import gc
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.core.static import Static, run_once_compiled

REBUILT = {
    "lora": lambda: fnn.lora(fnn.dense(4), 2),
    "weight_norm": lambda: fnn.weight_norm(fnn.dense(4)),
    "spectral_norm": lambda: fnn.spectral_norm(fnn.dense(4)),
    "stored": lambda: fnn.lora(fnn.stored(fnn.dense(4), jnp.int4), 2),
    "prune": lambda: fnn.prune(fnn.dense(4), 0.5),
    "frozen": lambda: fnn.frozen(fnn.weight_norm(fnn.dense(4)), "*/gain"),
    "repeat": lambda: fnn.repeat(fnn.lora(fnn.dense(3), 2), 3),
    "reparam": lambda: fnn.reparam(fnn.dense(4), lambda p: {"half": p}, lambda p: p["half"]),
    "orthogonal": lambda: fnn.dense(4, kernel_init=fnn.initializers.orthogonal()),
    "jax's": lambda: fnn.dense(4, kernel_init=jax.nn.initializers.glorot_normal()),
    "closure": lambda: fnn.dense(4, kernel_init=lambda k, s, d: jax.random.normal(k, s, d)),
    "lstm": lambda: fnn.rnn(fnn.cells.lstm(4)),
    "lru": lambda: fnn.lru(4, 3),
}


SAMPLE = ("lora", "closure") if "FNN_QUICK" in os.environ else REBUILT


@pytest.mark.parametrize("name", SAMPLE)
def test_a_network_that_is_built_again_compiles_nothing_and_keeps_nothing(name):
    shape = (1, 2, 3)

    def first(i):
        net, tx = REBUILT[name](), fnn.optim.adam(1e-3)
        return fnn.train.init(net, tx, jax.random.key(i), shape)

    first(0), first(1)
    gc.collect()
    alive, counted = len(gc.get_objects()), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: counted.append(event) if "backend_compile" in event else None
    )
    for i in range(20):
        first(i)
    gc.collect()
    assert not counted, set(counted)
    assert len(gc.get_objects()) - alive < 2000  # one closure and its jaxpr are hundreds each


def scaled_by(c, *, more=None):
    def helper(x):
        return x * c

    def fn(x):
        return helper(x) if more is None else more(x)

    return fn


def recursive(c):
    def fn(x, n=2):
        return fn(x * c, n - 1) if n else x

    return fn


OFFSET = 1.0


def test_functions_are_alike_if_their_code_and_all_they_refer_to_is():
    global OFFSET
    of = Static.of
    for make in (scaled_by, recursive, lambda c: functools.partial(scaled_by, c)):
        assert of(make(2.0)) == of(make(2.0)) != of(make(3.0))
        assert hash(of(make(2.0))) == hash(of(make(2.0)))
    assert of(scaled_by(1, more=jnp.sin)) == of(scaled_by(1, more=jnp.sin))
    assert of(scaled_by(1, more=jnp.sin)) != of(scaled_by(1, more=jnp.cos))
    assert of(scaled_by(1)) != of(scaled_by(1.0)) and of(scaled_by(True)) != of(scaled_by(1))
    assert of(scaled_by(0.0)) != of(scaled_by(-0.0))
    assert of(scaled_by(np.float32(1))) != of(scaled_by(np.float64(1)))

    def reads():
        return lambda x: x + OFFSET

    before = of(reads())
    assert before == of(reads())
    OFFSET = 2.0
    assert before != of(reads())
    OFFSET = 1.0


def test_what_is_known_by_identity_alone_runs_uncompiled():
    class Thing:
        value = 2.0

    for unknown in (jnp.ones(2), Thing(), np.arange(3.0), [1].append):
        assert Static.of(scaled_by(unknown)) is None
    calls = []

    def fn(x):
        calls.append(x)
        return x + 1

    assert run_once_compiled(fn, 1) == 2 and calls == [1]


def plus(a, b, x):
    return a + b + x


class Adder:
    def __init__(self, value):
        self.value = value

    def add(self, x):
        return x + self.value


def defaulted(a, b):
    def fn(x, a=a, *, b=b):
        return x + a + b

    return fn


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: lambda x: partial(plus, a)(0, x) + partial(plus, b)(0, x),
        lambda a, b: partial(plus, partial(plus, a, 0), partial(plus, b, 0)),
        lambda a, b: partial(plus, a, b),
        lambda a, b: partial(partial(plus, a), b),
        defaulted,
        lambda a, b: lambda x: defaulted(a, 0)(x) + defaulted(b, 0)(x),
        lambda a, b: lambda x: {"a": a, "b": {"c": b}}["b"]["c"] + x,
        lambda a, b: fnn.initializers.normal(a + b / 10),
    ],
)
def test_the_second_of_two_values_counts_as_much_as_the_first(make):
    of = Static.of
    assert of(make(1.0, 2.0)) == of(make(1.0, 2.0)) is not None
    assert of(make(1.0, 2.0)) != of(make(1.0, 3.0))
    assert of(make(1.0, 2.0)) != of(make(2.0, 2.0))


def test_two_layers_of_one_kind_keep_their_own_options():
    for fractions in ((0.5, 0.5), (0.5, 0.25), (0.5, 0.75)):
        net = fnn.serial(*(fnn.prune(fnn.dense(4), fraction) for fraction in fractions))
        _, state = net.init(jax.random.key(0), (1, 4))
        kept = [int(own["(frozen)"]["kernel"]["mask"].sum()) for own in state.values()]
        assert kept == [round(16 * (1 - fraction)) for fraction in fractions]


def test_what_may_change_unseen_is_not_compared():
    def labelled(x):
        return x + labelled.by

    labelled.by = 1.0
    for unknown in (labelled, Adder(1.0).add, lambda x: x + Adder.scale, [1]):
        assert Static.of(scaled_by(unknown)) is None
