import asyncio
import contextlib
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import fnn
from fnn.core.errors import OptionError
from fnn.serve import application

from .support import ask, connect, get, head, meters, oracle, post, read, stand_in

served = fnn.serve.running


@pytest.fixture(scope="module")
def address():
    with served(stand_in(), max_batch=8, timeout=0.5, max_bytes=20_000) as address:
        yield address


def examples(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def test_answers_are_those_of_the_network(address):
    x = examples(3)
    found = ask(address, {"x": x.tolist()})
    assert found.status == 200 and found.headers["content-type"] == "application/json"
    np.testing.assert_allclose(json.loads(found.body)["y"], oracle(x), rtol=1e-5, atol=1e-6)
    found = ask(address, npy(x[0]), "application/x-npy")
    assert found.headers["content-type"] == "application/x-npy"
    y = np.load(io.BytesIO(found.body))
    np.testing.assert_allclose(y, oracle(x[0]), rtol=1e-5, atol=1e-6)


def test_many_clients_at_once_each_get_their_own_answer(address):
    def client(i):
        for x in (examples(20, i)[:, None], examples(8, 100 + i)[None]):
            with connect(address) as connection:
                for rows in x:
                    connection.sendall(post({"x": rows.tolist()}))
                    y = json.loads(read(connection).body)["y"]
                    np.testing.assert_allclose(y, oracle(rows), rtol=1e-5, atol=1e-5)
        return True

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(client, range(8)))


def test_pages_say_what_the_network_is(address):
    told = json.loads(get(address, "/manifest").body)
    assert told["inputs"] == [{"name": "x", "shape": ["batch", 3], "dtype": "float32"}]
    assert told["predicts"]["rows"] == [1, 2, 4, 8] and told["max_bytes"] == 20_000
    assert get(address, "/health").status == get(address, "/ready").status == 200
    assert get(address, "/elsewhere").status == 404 and get(address, "/predict").status == 405


def test_every_answer_forbids_what_pages_of_other_sites_could_do(address):
    for answer in (get(address, "/"), get(address, "/elsewhere"), ask(address, b"{")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "deny"
        assert "server" not in answer.headers
        assert not any(name.startswith("access-control") for name in answer.headers)
    page = get(address, "/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert b"http" not in page.body.replace(b"http-equiv", b""), "the page loads nothing"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        ({"x": [1, 2]}, "application/json", 422),
        ({"x": [1, 2, float("nan")]}, "application/json", 422),
        ({"x": [1, 2, 3]}, "text/plain", 415),
        (b"PK", "application/x-npy", 400),
    ],
)
def test_bad_requests_are_refused_by_status_and_reason(address, body, kind, status):
    found = ask(address, body, kind)
    assert found.status == status and "expected" in json.loads(found.body)["error"]


def test_after_a_bad_request_a_connection_goes_on(address):
    with connect(address) as connection:
        for body, status in ((b"{", 400), ({"x": [1, 2, 3]}, 200), ({"x": 1}, 422)):
            connection.sendall(post(body))
            assert read(connection).status == status


# --- clients that do not behave


def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_comes(address):
    with connect(address) as connection:
        connection.sendall(head(10**15))
        found = read(connection)
        assert found.status == 413 and found.headers["connection"] == "close"


def test_a_body_that_is_too_large_is_refused_to_a_client_that_is_still_sending(address):
    with connect(address) as connection:
        connection.sendall(head(5_000_000) + bytes(5_000_000))
        assert read(connection).status == 413


def test_a_body_of_chunks_is_cut_off(address):
    start = post(b"", more="").partition(b"content-length")[0]
    with connect(address) as connection:
        connection.sendall(start + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(30):
            connection.sendall(b"400\r\n" + bytes(0x400) + b"\r\n")
        assert read(connection).status == 413
    body = json.dumps({"x": [1, 2, 3]}).encode()
    with connect(address) as connection:
        parts = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
        connection.sendall(start + b"transfer-encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n")
        assert read(connection).status == 200


def test_a_slow_body_is_given_up(address):
    with connect(address) as connection:
        connection.sendall(head(100) + b'{"x"')
        assert read(connection).status == 408


def test_slow_headers_and_silent_connections_are_closed(address):
    with connect(address) as silent, connect(address) as slow, connect(address) as second:
        slow.sendall(b"POST /predict HTTP/1.1\r\nhost:")
        second.sendall(post({"x": [1, 2, 3]}))
        assert read(second).status == 200
        second.sendall(b"POST /pre")
        for connection in (silent, slow, second):
            assert read(connection).status == 0


def test_what_is_no_http_is_refused(address):
    with connect(address) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        assert read(connection).status in (0, 400)
    assert get(address, "/health").status == 200


def test_headers_without_end_are_cut_off():
    with served(stand_in(), max_batch=1) as address, connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
        assert connection.recv(1) == b""


def test_unfinished_bodies_do_not_fill_the_memory(address, monkeypatch):
    monkeypatch.setattr("fnn.serve.bodies.BODIES", 2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(address)) for _ in range(4)]
        for connection in clients:
            connection.sendall(head(19_000) + b" " * 15_000)
        found = [read(connection) for connection in clients]
    assert sorted(answer.status for answer in found) == [408, 408, 503, 503]
    assert ask(address, {"x": [1, 2, 3]}).status == 200


# --- the queue, failures and the end


class Gate:
    """The network, which waits until it is let go."""

    def __init__(self):
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, x):
        self.entered.set()
        assert self.open.wait(10)
        if (x == 13).any():
            raise ValueError("thirteen")
        return np.asarray(oracle(x), np.float32)

    def shut(self):
        self.open.clear()
        self.entered.clear()


def until(true, seconds=5):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_queue_says_when_to_come_again_and_those_who_leave_make_room():
    gate = Gate()
    artifact = stand_in(gate)
    with served(artifact, max_batch=4, queue=2) as address, contextlib.ExitStack() as stack:
        compiled = len(artifact.shapes)
        gate.shut()
        clients = [stack.enter_context(connect(address)) for _ in range(3)]
        for i, connection in enumerate(clients):
            connection.sendall(post({"x": [i, 0, 0]}))
            gate.entered.wait(5)
        until(lambda: meters(address)["fnn_queue_length"] == 2)
        assert ask(address, b"{").status == 503  # before the body is looked at
        found = ask(address, {"x": [9, 0, 0]})
        assert found.status == 503 and found.headers["retry-after"] == "1"
        clients[1].close()
        until(lambda: meters(address)["fnn_queue_length"] == 1)
        late = stack.enter_context(connect(address))
        late.sendall(post({"x": [7, 0, 0]}))
        until(lambda: meters(address)["fnn_queue_length"] == 2)
        gate.open.set()
        for connection, i in ((clients[0], 0), (clients[2], 2), (late, 7)):
            np.testing.assert_allclose(json.loads(read(connection).body)["y"], oracle([i, 0, 0]))
        assert meters(address)["fnn_clients_left_total"] == 1
        assert artifact.shapes[compiled:] == [(1, 3), (2, 3)]


def test_a_failing_batch_is_answered_by_500_and_the_next_is_not(caplog):
    with served(stand_in(Gate()), max_batch=2) as address:
        assert ask(address, {"x": [1, 13, 0]}).status == 500
        assert b"thirteen" not in ask(address, {"x": [1, 13, 0]}).body
        assert ask(address, {"x": [1, 2, 3]}).status == 200


def test_leaving_the_server_answers_what_waits():
    gate, answers, before = Gate(), [], set(threading.enumerate())
    with served(stand_in(gate), max_batch=2) as address:
        gate.shut()
        clients = [connect(address) for _ in range(4)]
        clients[0].sendall(post({"x": [1, 2, 3]}))
        assert gate.entered.wait(5)
        for connection in clients[1:]:
            connection.sendall(post({"x": [1, 2, 3]}))
        until(lambda: meters(address)["fnn_queue_length"] == 3)
        threading.Timer(0.3, gate.open.set).start()
    for connection in clients:  # the server is gone by now
        answers.append(read(connection).status)
        connection.close()
    assert answers == [200] * 4
    with pytest.raises(OSError):
        connect(address)
    assert set(threading.enumerate()) <= before


def test_meters_count_what_was_asked():
    with served(stand_in(), max_batch=4) as address:
        for body in ({"x": [[1, 2, 3]] * 3}, {"x": [1, 2, 3]}, b"{"):
            ask(address, body)
        get(address, "/nowhere"), get(address, "/nowhere/else")
        found = meters(address)
    assert found['fnn_requests_total{path="/predict",status="200"}'] == 2
    assert found['fnn_requests_total{path="/predict",status="400"}'] == 1
    assert found['fnn_requests_total{path="other",status="404"}'] == 2
    assert found['fnn_request_seconds_count{path="/predict"}'] == 3
    assert found['fnn_batch_rows_bucket{le="1.0"}'] == 1 and found["fnn_batch_rows_sum"] == 5


def test_apps_share_no_meters():
    with served(stand_in()) as one, served(stand_in()) as other:
        ask(one, {"x": [1, 2, 3]})
        assert meters(one)["fnn_batch_rows_count"] == 1
        assert meters(other)["fnn_batch_rows_count"] == 0


def test_an_artifact_of_a_network_is_served_and_its_inputs_are_watched(tmp_path):
    import jax

    net = fnn.serial(fnn.dense(4), jax.nn.relu, fnn.dense(2))
    params, state = net.init(jax.random.key(0), (1, 3))
    then = examples(500)
    fnn.export.save(tmp_path / "net", net, params, state, ("batch", 3), examples=then)
    a, b = (jax.tree.map(np.float64, params[name]) for name in ("dense1", "dense2"))
    x = examples(4, 1) + np.float32([0, 0, 2])
    want = np.maximum(x @ a["kernel"] + a["bias"], 0) @ b["kernel"] + b["bias"]
    with served(fnn.export.load(tmp_path / "net"), max_batch=4) as address:
        y = json.loads(ask(address, {"x": x.tolist()}).body)["y"]
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
        found = meters(address)
    shift = abs(x.mean(0) - then.mean(0)) / then.std(0)
    names = [f'fnn_input_mean_shift{{feature="{i}",input="x"}}' for i in range(3)]
    np.testing.assert_allclose([found[name] for name in names], shift, rtol=1e-4)
    psi = [found[f'fnn_input_psi{{feature="{i}",input="x"}}'] for i in range(3)]
    assert found["fnn_input_window"] == 4 and psi[2] == max(psi)


async def asked(app, path):
    """The status and the body that an application gives, by hand."""
    body, sent = json.dumps({"x": [1, 2, 3]}).encode(), []

    async def receive():
        if not sent:
            sent.append(None)
            return {"type": "http.request", "body": body}
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    await app(scope | {"root_path": "", "query_string": b""}, receive, send)
    return sent[1]["status"], sent[2]["body"]


def test_inside_another_application_no_lifespan_is_needed():
    outer = Starlette(routes=[Mount("/model", fnn.serve.app(stand_in(), max_batch=1))])
    status, body = asyncio.run(asked(outer, "/model/predict"))
    assert status == 200
    np.testing.assert_allclose(json.loads(body)["y"], oracle([1, 2, 3]))


def test_an_application_may_be_started_again():
    app = fnn.serve.app(stand_in(), max_batch=1)

    async def once():
        async with app.router.lifespan_context(app):
            assert (await asked(app, "/predict"))[0] == 200
        assert (await asked(app, "/predict"))[0] == 503

    asyncio.run(once())
    asyncio.run(once())


def test_a_network_for_a_fixed_number_of_examples_gets_so_many():
    artifact = stand_in(shape=(5, 3), outputs=[("y", (5, 2))])
    with served(artifact) as address:
        y = json.loads(ask(address, {"x": [[1, 2, 3]] * 2}).body)["y"]
        np.testing.assert_allclose(y, oracle([[1, 2, 3]] * 2))
        assert ask(address, {"x": [[1, 2, 3]] * 6}).status == 422
    assert set(artifact.shapes) == {(5, 3)}


def test_who_reads_no_answer_is_cut_off():
    size = 1 << 22
    wide = stand_in(lambda x: np.zeros((1, size), "f4"), outputs=[("y", ("batch", size))])
    with served(wide, max_batch=1, timeout=0.5) as address, connect(address) as connection:
        connection.sendall(post(npy(np.zeros(3, "f4")), "application/x-npy"))
        connection.recv(1)
        time.sleep(1.3)
        assert sum(iter(lambda: len(connection.recv(1 << 20)), 0)) < 4 * size


def test_the_policy_of_the_page_names_its_script():
    page, policy = application.page_and_policy()
    assert (
        page.count(b"<script>")
        == page.count(b"<style>")
        == policy.count("script-src 'sha256-")
        == 1
    )


def test_options_are_checked():
    for options in ({"queue": 0}, {"timeout": 0}, {"max_bytes": 0}, {"max_batch": 0}):
        with pytest.raises(OptionError, match=next(iter(options))):
            fnn.serve.app(stand_in(), **options)
