"""Speed, measured against peers side by side: `python -m benchmarks.run --help`."""
