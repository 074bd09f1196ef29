"""Starts a script in several processes on this machine: `python -m fnn.distributed --help`."""

import sys

from fnn.distributed.launcher import main

if __name__ == "__main__":
    sys.exit(main())
