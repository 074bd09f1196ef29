import collections
import json
import time

import jax
import numpy as np
import pytest

import fnn
from fnn.serve.generation import Wish, drawn, wish_of, writer_of
from fnn.serve.messages import Refused

from .support import ask, connect, get, meters, post, stand_in

WORDS = ["a", "b", "ab", "c", " "]
LOGITS = np.random.default_rng(0).normal(size=(3, 5, 5))  # by tokens so far mod 3, and the token


class Chain:
    """A step whose logits depend on the token and on how many there were."""

    @staticmethod
    def first(x):
        assert x.shape == (1,) and x.dtype == np.int32
        return 0

    def __call__(self, carry, x):
        if carry == 50:
            raise ValueError("fifty")
        return carry + 1, LOGITS[carry % 3, x].astype(np.float32)


class Counting(Chain):
    count = 0

    def __call__(self, carry, x):
        self.count += 1
        time.sleep(0.001)
        return super().__call__(carry % 3, x)


def likeliest(tokens, count):
    """The continuation by hand."""
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(LOGITS[(len(tokens) - 1) % 3, tokens[-1]].argmax()))
    return tokens[-count:]


def writing(shape=("batch",), labels=WORDS, **more):
    artifact = stand_in(labels=labels, **more)
    artifact.steps = {"write": Chain()}
    artifact.manifest["programs"]["write"] = {
        "inputs": [{"name": "x", "shape": list(shape), "dtype": "int32"}],
        "outputs": [{"name": "y", "shape": [*shape, 5], "dtype": "float32"}],
    }
    return artifact


@pytest.fixture(scope="module")
def address():
    with fnn.serve.running(writing()) as address:
        yield address


def events(body):
    parts = body.decode().split("\n\n")
    assert parts.pop() == "" and all(part.startswith("data: ") for part in parts)
    return [json.loads(part[6:]) for part in parts]


def generate(address, **wish):
    """What is streamed, chunk by chunk."""
    with connect(address) as connection:
        connection.sendall(post(wish, path="/generate", more="connection: close\r\n"))
        data = b""
        while part := connection.recv(65536):
            data += part
    top, _, rest = data.partition(b"\r\n\r\n")
    assert b" 200 " in top and b"text/event-stream" in top, data
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return events(body)


def test_the_likeliest_continuation_is_that_by_hand(address):
    *written, end = generate(address, prompt="aabc", max_tokens=20, temperature=0)
    want = likeliest([0, 2, 3], 20)
    assert [event["token"] for event in written] == want
    assert [event["text"] for event in written] == [WORDS[i] for i in want]
    assert end == {"done": True}
    long = [i % 5 for i in range(35)]
    *written, _ = generate(address, prompt=long, max_tokens=3, temperature=0)
    assert [event["token"] for event in written] == likeliest(long, 3)


def test_a_seed_gives_the_same_text_again(address):
    one, same, other = (generate(address, prompt="a", seed=seed) for seed in (1, 1, 2))
    assert one == same != other and len(one) <= 101


def test_a_failing_step_ends_the_stream_by_an_error(address, caplog):
    *written, end = generate(address, prompt="a", max_tokens=100)
    assert len(written) == 50 and end == {"error": "the network failed"}
    assert generate(address, prompt="a", max_tokens=1)[-1] == {"done": True}


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({}, "expected prompt"),
        ({"prompt": "a", "tokens": 3}, "expected prompt"),
        ({"prompt": "axb"}, "no label for 'x'"),
        ({"prompt": ""}, "1 to 1024 tokens, got 0"),
        ({"prompt": [0, 5]}, "from 0 to 4"),
        ({"prompt": [0, True]}, "from 0 to 4"),
        ({"prompt": 3}, "got int"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "top_k": 1.5}, "top_k"),
        ({"prompt": "a", "seed": "x"}, "seed"),
    ],
)
def test_bad_wishes_are_refused(address, wish, reason):
    found = ask(address, wish, path="/generate")
    assert found.status == 422 and reason in json.loads(found.body)["error"]


def test_other_bodies_are_refused(address):
    assert ask(address, b"{", path="/generate").status == 400
    assert ask(address, {"prompt": "a"}, "text/plain", path="/generate").status == 415


def test_a_client_that_leaves_ends_its_text():
    artifact, counting = writing(), Counting()
    artifact.steps["write"] = counting
    with fnn.serve.running(artifact) as address:
        with connect(address) as connection:
            connection.sendall(post({"prompt": "a", "max_tokens": 10**6}, path="/generate"))
            assert connection.recv(10)
        while meters(address)["fnn_clients_left_total"] == 0:
            assert counting.count < 1000


def test_so_many_texts_are_written_at_a_time(monkeypatch):
    monkeypatch.setattr("fnn.serve.generation.STREAMS", 1)
    artifact = writing()
    artifact.steps["write"] = Counting()
    with fnn.serve.running(artifact) as address, connect(address) as connection:
        connection.sendall(post({"prompt": "a", "max_tokens": 10**6}, path="/generate"))
        assert connection.recv(10)
        assert ask(address, {"prompt": "a"}, path="/generate").status == 503


def test_texts_need_no_predictions(address):
    told = json.loads(get(address, "/manifest").body)
    assert told["writes"] == {"most": 1024, "words": True} and told["predicts"] is None
    assert ask(address, {"x": [1, 2, 3]}).status == 404
    with fnn.serve.running(writing(), sizes={}) as both:
        assert ask(both, {"x": [1, 2, 3]}).status == 200


def test_a_step_that_writes_is_found():
    limited = writing(("batch", "time"), None, constraints=["time <= 7", "batch <= 3"])
    found = writer_of(limited)
    assert found.shape == (1, 1) and found.most == 7 and found.words is None
    for artifact in (stand_in(), writing(("batch", 3)), writing(("batch", "a", "b"))):
        assert writer_of(artifact) is None


def test_tokens_are_drawn_in_proportion():
    logits, rng = np.log([0.5, 0.3, 0.15, 0.05]), np.random.default_rng(0)
    for wish, want in (
        (Wish("", temperature=1), [0.5, 0.3, 0.15, 0.05]),
        (Wish("", temperature=0.5), np.square([0.5, 0.3, 0.15, 0.05]) / 0.365),
        (Wish("", top_k=2), [0.625, 0.375, 0, 0]),
    ):
        counts = collections.Counter(drawn(logits, wish, rng) for _ in range(4000))
        np.testing.assert_allclose([counts[i] / 4000 for i in range(4)], want, atol=0.03)
        assert wish.top_k != 2 or set(counts) == {0, 1}


def test_a_wish_is_an_object():
    with pytest.raises(Refused, match="an object, got list"):
        wish_of(b"[]")


def test_a_recurrent_network_writes_what_it_writes_by_hand(tmp_path):
    learner = fnn.serial(embed=fnn.embedding(5, 4), rnn=fnn.gru(8), head=fnn.dense(5))
    cells = fnn.cells.gru(8)
    writer = fnn.cells.serial(embed=fnn.embedding(5, 4), rnn=cells, head=fnn.dense(5))
    tokens = jax.ShapeDtypeStruct((1, 7), np.int32)
    params, state = learner.init(jax.random.key(0), tokens)
    params = jax.tree.map(lambda a: 3 * a, params)
    ints = jax.ShapeDtypeStruct
    fnn.export.save(
        tmp_path / "net", learner, params, state, ints(("batch", "time"), np.int32),
        steps={"write": (writer, ints(("batch",), np.int32))}, labels=WORDS, platforms=["cpu"],
    )  # fmt: skip
    text, run = [0, 3, 1], jax.jit(learner)
    for _ in range(6):
        padded = np.array([text + [0] * (9 - len(text))], np.int32)
        text.append(int(np.asarray(run(params, padded))[0, len(text) - 1].argmax()))
    with fnn.serve.running(fnn.export.load(tmp_path / "net")) as address:
        *written, _ = generate(address, prompt=[0, 3, 1], max_tokens=6, temperature=0)
    assert [event["token"] for event in written] == text[3:]
