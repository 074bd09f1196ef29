"""What is written runs: every doctest, every code block of the README; and all of it is written."""

import doctest
import importlib
import inspect
import linecache
import pathlib
import pkgutil
import re

import jax
import pytest

import fnn

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(m.name for m in pkgutil.walk_packages(fnn.__path__, "fnn."))
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", ["fnn", *MODULES])
def test_doctests(name):
    linecache.clearcache()  # each docstring's debugger looks at all files in it
    with jax.numpy_dtype_promotion("standard"):  # as a user has it
        failed, _ = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert not failed


def public():
    """The functions and classes that fnn and its submodules export, by name."""
    for module in (
        fnn, fnn.cells, fnn.optim, fnn.optim.schedules, fnn.optim.constraints, fnn.train,
        fnn.search, fnn.data, fnn.data.augment, fnn.initializers, fnn.losses, fnn.metrics,
        fnn.tree, fnn.convert, fnn.analysis, fnn.analysis.curvature, fnn.analysis.plot, fnn.log,
        fnn.checkpoint, fnn.distributed, fnn.sharding, fnn.export, fnn.generation, fnn.serve,
    ):  # fmt: skip
        listed = getattr(module, "__all__", None)
        names = listed or [n for n, v in vars(module).items() if inspect.isfunction(v)]
        for name in names:
            value = getattr(module, name)
            own = getattr(value, "__module__", "") == module.__name__ if not listed else True
            if own and callable(value) and not name.startswith(("_", "check_")):
                yield f"{module.__name__}.{name}", value
    for name in ("check_layer", "check_optimizer"):
        yield f"fnn.testing.{name}", getattr(fnn.testing, name)


@pytest.mark.parametrize(("name", "value"), dict(public()).items())
def test_every_public_name_has_a_docstring_with_an_example(name, value):
    documented = inspect.getdoc(value) or ""
    first = documented.split("\n\n")[0].replace("\n", " ")
    assert first.endswith((".", ":")) or ". " in first, f"{name}: no sentence"
    plain_record = isinstance(value, type) and issubclass(value, (tuple, Exception))
    assert plain_record or ">>>" in documented, f"{name}: no example"


def test_every_code_block_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)


def test_links_and_pictures_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
        target = "".join(target)
        if not target.startswith(("http:", "https:")):
            assert (ROOT / target).exists(), target
