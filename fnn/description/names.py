"""The names of functions in a description, and what a name may stand for."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from fnn.core import errors
from fnn.core.layer import Layer
from fnn.core.plain import found_at, is_function, place_of

# Where a function is looked for first: these names are documented, those of the files may change.
PUBLIC = (
    "fnn", "fnn.cells", "fnn.initializers", "jax.nn", "jax.numpy", "jax.lax", "jax.nn.initializers",
    "jax.scipy.special", "jax.random", "jax.numpy.linalg", "jax.numpy.fft",
)  # fmt: skip
# What a description may name without being asked: functions of arrays, and fnn's builders.
PURE = (
    "jax.nn", "jax.numpy", "jax.lax", "jax.nn.initializers", "jax.scipy.special", "jax.random",
    "jax.numpy.linalg", "jax.numpy.fft",
)  # fmt: skip
IMPURE = (  # of jax.numpy
    "load", "save", "savez", "fromfile", "frompyfunc", "from_dlpack", "printoptions",
    "set_printoptions",
)  # fmt: skip


def name_of(place: tuple[str, str]) -> str | None:
    """The name by which a function is imported; None for one of an interactive session."""
    fn, (module, name) = found_at(place), place
    for public in PUBLIC:
        if fn is not None and getattr(sys.modules.get(public), name, None) is fn:
            return f"{public}.{name}"
    if module in ("__main__", "__mp_main__"):
        module = _script()
    return f"{module}.{name}" if module else None


def _script() -> str | None:
    """The name by which another program imports the module that runs as a script."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return spec.name.removesuffix(".__main__")
    name = pathlib.Path(file).stem if file else ""
    return name if name.isidentifier() else None


def resolve(name: Any, allow: Iterable[str]) -> Any:
    """What a name in a description stands for; one that is not allowed is not imported.

    Raises DescriptionError for others than `allow`, fnn's builders and JAX's functions of arrays.
    """
    if not (isinstance(name, str) and all(map(_is_plain, name.split(".")))):
        raise errors.DescriptionError("the name of a function", errors.show(name), "mend it")
    own = [module for module in allow if f"{name}.".startswith(f"{module}.")]
    public = [module for module in PURE if name.rpartition(".")[0] == module]
    parts = name.split(".")
    if own:
        found = _imported(parts, own[0].count(".") + 1)
        found = found if isinstance(found, Layer) or _is_of(found, own) else None
    elif public and parts[-1] not in IMPURE and not parts[-1].startswith("_"):
        found = getattr(importlib.import_module(public[0]), parts[-1], None)
    elif parts[0] == "fnn" and not any(part.startswith("_") for part in parts):
        found = _imported(parts, 1)
        found = found if errors.is_builder(found) else None
    else:
        raise errors.DescriptionError(
            "names of fnn's builders and JAX's functions, or of modules that you allow",
            name,
            f"if you trust that module, pass allow=({parts[0]!r},)",
        )
    if found is None or isinstance(found, ModuleType):
        mend = "install the versions with which it was described"
        raise errors.DescriptionError("a function that is defined there", name, mend)
    return found


def _is_of(found: Any, modules: list[str]) -> bool:
    """Whether a function or a class was defined in these modules, not only imported by them."""
    if not (is_function(found) or isinstance(found, type)):
        return False
    return any(f"{place_of(found)[0]}.".startswith(f"{module}.") for module in modules)


def _is_plain(part: str) -> bool:
    return part.isidentifier() and not part.startswith("__")


def _imported(parts: list[str], least: int) -> Any:
    """What stands under a dotted name: modules as far as they go, then attributes."""
    found: Any = None
    for i in range(least, len(parts) + 1):
        name = ".".join(parts[:i])
        inner = getattr(found, parts[i - 1], None) if found is not None else None
        if inner is None or isinstance(inner, ModuleType):
            if isinstance(inner, ModuleType) and inner.__name__ != name:
                return None  # another module, which this one has imported
            try:
                inner = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
                return None
        found = inner
    return found
