"""Shows runs in the terminal: `python -m fnn.log run.jsonl`."""

import sys

from fnn.log.terminal import main

if __name__ == "__main__":
    sys.exit(main())
