"""Serves an artifact: `python -m fnn.serve artifact --port 8000`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from fnn.core.errors import FnnError
from fnn.export import load
from fnn.serve.server import listen


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; returns 2 for an artifact or options that cannot be served."""
    parser = argparse.ArgumentParser(prog="python -m fnn.serve", description=__doc__)
    parser.add_argument("artifact", type=pathlib.Path, help="a folder from fnn.export.save")
    parser.add_argument("--host", default="127.0.0.1", help="keep it, and put a proxy in front")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--max-batch", type=int, default=64, help="examples run together")
    parser.add_argument("--queue", type=int, default=256, help="examples that may wait")
    parser.add_argument(
        "--max-bytes", type=int, help="of a request (default: a batch as JSON, up to 32 MiB)"
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to send a request")
    parser.add_argument(
        "--size",
        action="append",
        default=[],
        type=_size,
        metavar="NAME=N,N",
        dest="sizes",
        help="what a named size of the inputs may be",
    )
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    options["sizes"] = dict(options["sizes"]) or None
    try:
        listen(load(options.pop("artifact")), **options)
    except (FnnError, OSError) as error:
        print(f"python -m fnn.serve: {error}", file=sys.stderr)
        return 2
    return 0


def _size(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    return name, tuple(map(int, sizes.split(",")))


if __name__ == "__main__":
    sys.exit(main())
