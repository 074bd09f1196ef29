"""Servers that listen: in this process until a signal, or in a thread."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fnn.serve.application import app
from fnn.serve.bodies import LINGER

if TYPE_CHECKING:
    import uvicorn

    from fnn.export import Artifact

CONNECTIONS = 512  # above, requests are answered by 503


def listen(
    artifact: Artifact, *, host: str = "127.0.0.1", port: int = 8000, **options: Any
) -> None:
    """Serve a network until SIGTERM or SIGINT, and print the address once it listens.

    Then it takes no more connections, answers what has come, and returns. There is no
    authentication and no TLS: other machines should reach it through a reverse proxy, which has
    both. Run it in the main thread, one process a device.

    - `host`, `port`: where to listen; port 0 is any that is free.
    - `options`: those of `fnn.serve.app`.

    Raises what `fnn.serve.app` raises, and OSError if it cannot listen there.

    >>> import fnn
    >>> fnn.serve.listen(fnn.export.load("artifacts/digits"), port=8000)  # doctest: +SKIP
    serving at http://127.0.0.1:8000
    """
    server, listener = _server(artifact, host, port, options)

    def leave(*_):  # uvicorn passes the signal on once it has ended, and that would kill
        sys.exit(0)

    before = {s: signal.signal(s, leave) for s in (signal.SIGTERM, signal.SIGINT)}
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()  # or a collection looks through all that JAX has made, while requests wait
    gc.set_threshold(20_000, *thresholds[1:])  # the lists in one request exceed the usual 700
    try:
        print(f"serving at {_address(listener)}", flush=True)
        server.run([listener])
    except SystemExit as exit:
        if exit.code:
            raise
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running(
    artifact: Artifact, *, host: str = "127.0.0.1", port: int = 0, **options: Any
) -> Iterator[str]:
    """Serve a network in a thread inside a `with`, which gives the address: for tests, notebooks.

    - `host`, `port`, `options`: as in `listen`.

    >>> import fnn, jax, json, tempfile, urllib.request
    >>> net, path = fnn.dense(3, kernel_init=fnn.initializers.zeros), tempfile.mkdtemp() + "/dense"
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> fnn.export.save(path, net, params, state, ("batch", 4))
    >>> with running(fnn.export.load(path), max_batch=1) as address:
    ...     body, kind = b'{"x": [1, 2, 3, 4]}', {"content-type": "application/json"}
    ...     request = urllib.request.Request(address + "/predict", body, kind)
    ...     print(json.load(urllib.request.urlopen(request)))
    {'y': [0.0, 0.0, 0.0]}
    """
    server, listener = _server(artifact, host, port, options)
    thread = threading.Thread(target=server.run, args=([listener],), name="fnn-serve-http")
    thread.start()
    try:
        yield _address(listener)
    finally:
        server.should_exit = True
        thread.join()


def _server(
    artifact: Artifact, host: str, port: int, options: dict[str, Any]
) -> tuple[uvicorn.Server, socket.socket]:
    """A server, and the socket on which it is to listen."""
    try:
        from uvicorn import Config, Server

        from fnn.serve.protocol import Protocol
    except ImportError:
        raise ImportError("fnn.serve needs uvicorn: pip install 'fnn[serve]'") from None
    timeout = options.get("timeout", 30.0)
    config = Config(
        app(artifact, **options),
        http=Protocol,
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        log_config=None,  # which is global, and the program's own
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=math.ceil(timeout),
        timeout_graceful_shutdown=math.ceil(timeout + LINGER) + 1,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return Server(config), socket.create_server((host, port), family=family, backlog=config.backlog)


def _address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
