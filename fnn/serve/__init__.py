"""A network behind HTTP: `python -m fnn.serve artifact` answers what it is asked, in batches."""

from fnn.serve.application import app
from fnn.serve.server import listen, running

__all__ = ["app", "listen", "running"]
