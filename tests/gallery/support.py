"""An example as a module, run as by its command, and the numbers that it prints."""

import importlib.util
import pathlib
import re
import sys

import jax

import fnn

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, flags, tmp_path, monkeypatch, capsys):
    """What its command prints; the pictures are in tmp_path."""
    argv = [module.__name__, *flags.split(), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    module.main()
    return capsys.readouterr().out


def numbers(pattern, text):
    return [float(match) for match in re.findall(pattern, text)]


def fewer(monkeypatch, train, test):
    """Let data sets have only so many training and test examples, the first of theirs."""
    load, sizes = fnn.data.load, {"train": train, "test": test}

    def first(name, **options):
        parts = load(name, **options)
        return {
            split: jax.tree.map(lambda a, n=n: a[:n], parts[split]) for split, n in sizes.items()
        }

    monkeypatch.setattr(fnn.data, "load", first)
