"""The application: a network behind paths."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fnn.core import checks, errors
from fnn.serve.batcher import Batcher
from fnn.serve.bodies import Reader
from fnn.serve.endpoints import Counted, Get, Predict
from fnn.serve.generation import Generate, Writer, writer_of
from fnn.serve.interface import Interface, interface
from fnn.serve.messages import JSON
from fnn.serve.monitoring import Monitor
from fnn.serve.watching import Watch

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from fnn.export import Artifact

PAGE = pathlib.Path(__file__).with_name("page.html")
LEAST, MOST = 1 << 16, 32 << 20  # bytes that a request may have, unless it is said
TEXT = "text/plain; charset=utf-8"


@errors.named
def app(
    artifact: Artifact,
    *,
    max_batch: int = 64,
    queue: int = 256,
    max_bytes: int | None = None,
    timeout: float = 30.0,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> Starlette:
    """An application that answers for a network, for any server that speaks ASGI.

        POST /predict    {"x": [...]} -> {"y": [...]}, or one npy file for another
        POST /generate   {"prompt": "..."} -> its continuation, token by token as it is written
        GET /            a page to try it on
        GET /manifest    what goes in and comes out
        GET /health      200 while the process lives
        GET /ready       200 while requests are taken, else 503
        GET /metrics     for Prometheus

    Inputs are a batch, or one example without the axis of examples, whose answer has none either.
    What waits is run together, in batches of powers of two, all of which are compiled before this
    returns. A request that does not fit the manifest is refused by 422 with what was expected, one
    that is no JSON or npy by 400, one too large by 413, too slow by 408, one too many by 503.

    `/generate` is there if the artifact has a step from whole numbers to logits; its labels are the
    words for the tokens. It takes `max_tokens`, `temperature` (0: the likeliest), `top_k`, `seed`
    and answers by server-sent events. Several texts are written in turns.

    - `artifact`: what `fnn.export.load` returns.
    - `max_batch`: examples in a batch and in a request, unless the artifact has a fixed number.
    - `queue`: examples that may wait.
    - `max_bytes`: of a body; by default what `max_batch` examples take as JSON, within 64 KiB and
      32 MiB. Eight times as much may be in memory unfinished, of all requests.
    - `timeout`: seconds within which the body of a request must come.
    - `sizes`: by name, what other named sizes of inputs may be, such as {"time": (32, 64)}. If an
      artifact writes, it answers /predict only where this is given.

    By rounding, an answer may depend on the batch that its request is in. Numbers that are not
    finite are null in JSON. The lifespan of the application, if the server runs it, ends with all
    answered and the thread that ran the network gone.

    Raises ImportError without the extra `serve`; ShapeError or OptionError for an artifact whose
    examples do not lie along one axis, or has other named sizes than `sizes`.

    >>> import fnn, tempfile
    >>> net, path = fnn.dense(3), tempfile.mkdtemp() + "/dense"
    >>> params, state = net.init(jax.random.key(0), (1, 4))
    >>> fnn.export.save(path, net, params, state, ("batch", 4))
    >>> served = app(fnn.export.load(path), max_batch=2)
    >>> [route.path for route in served.routes][:2]
    ['/predict', '/']
    """
    try:
        import orjson  # noqa: F401
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError:
        raise ImportError("fnn.serve needs more packages: pip install 'fnn[serve]'") from None
    checks.positive("timeout", timeout)
    manifest = artifact.manifest
    writer, said = writer_of(artifact), manifest["programs"]["apply"]
    form = None if writer and sizes is None else interface(said, max_batch, sizes)
    rows = form.rows if form else (1,)
    if max_bytes is None:
        max_bytes = min(max(form.most_bytes() if form else 0, LEAST), MOST)
    net = functools.partial(artifact.apply.call, *artifact.apply.given)  # checked when it comes
    reader = Reader(checks.count("max_bytes", max_bytes), timeout)

    def program(*xs: np.ndarray) -> list[np.ndarray]:
        start = time.perf_counter()
        ys = [np.asarray(y) for y in jax.tree.leaves(net(*xs))]
        monitor.batch_rows.observe(len(xs[0]))
        monitor.batch_seconds.observe(time.perf_counter() - start)
        return ys

    batcher = Batcher(program, sizes=rows, queue=queue, axes=form and form.axes)
    statistics = manifest.get("statistics")
    watch = Watch(statistics, form.inputs) if statistics and form else None
    monitor = Monitor(rows, lambda: len(batcher), watch)
    for xs in form.zeros() if form else ():  # compiles
        jax.block_until_ready(net(*xs))
    if writer:
        writer.read(writer.first(), [0])

    @contextlib.asynccontextmanager
    async def lifespan(_):
        batcher.closed = False  # an application may be started again
        yield
        await batcher.close()

    posts: list[Any] = [Predict(form, batcher, reader, monitor)] if form else []
    posts += [Generate(writer, batcher, reader, monitor)] if writer else []
    told = told_of(manifest, form, writer) | {"max_bytes": max_bytes}
    routes = [Route(post.path, post, methods=["POST"]) for post in posts]
    routes += [Route(get.path, get, methods=["GET"]) for get in gets_of(told, batcher, monitor)]
    served = Starlette(routes=routes, lifespan=lifespan)
    served.add_middleware(Counted, monitor=monitor, posts={post.path: post for post in posts})
    return served


def gets_of(told: Mapping[str, Any], batcher: Batcher, monitor: Monitor) -> list[Get]:
    """What is there to read."""

    async def ready() -> tuple[int, bytes]:
        return (503, b"closing\n") if batcher.closed else (200, b"ready\n")

    async def metrics() -> tuple[int, bytes]:
        return 200, await asyncio.to_thread(monitor.page)

    page, policy = page_and_policy()
    return [
        Get("/", page, "text/html; charset=utf-8", **{"content-security-policy": policy}),
        Get("/manifest", json.dumps(told).encode(), JSON),
        Get("/health", b"alive\n", TEXT),
        Get("/ready", ready, TEXT),
        Get("/metrics", metrics, monitor.kind),
    ]


def told_of(
    manifest: Mapping[str, Any], form: Interface | None, writer: Writer | None
) -> dict[str, Any]:
    """What of the manifest anybody may know: what goes in and comes out, and what it is."""
    said, statistics = manifest["programs"]["apply"], manifest.get("statistics") or {}
    ranges = {name: (np.min(of["min"]), np.max(of["max"])) for name, of in statistics.items()}
    return {
        "labels": manifest.get("labels"),
        "network": manifest.get("network"),
        "inputs": said["inputs"],
        "outputs": said["outputs"],
        "ranges": {name: pair for name, pair in ranges.items() if np.isfinite(pair).all()},
        "predicts": {"rows": form.rows, "sizes": form.sizes} if form else None,
        "writes": {"most": writer.most, "words": bool(writer.words)} if writer else None,
    }


def page_and_policy() -> tuple[bytes, str]:
    """The page, and the header that lets only its own script and style run."""
    text = PAGE.read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        sums = [hashlib.sha256(part.encode()).digest() for part in parts]
        return " ".join(f"'sha256-{base64.b64encode(s).decode()}'" for s in sums)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text.encode(), policy
