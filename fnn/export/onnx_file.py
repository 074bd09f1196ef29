"""A network as an ONNX file, for runtimes that know nothing of JAX."""

from __future__ import annotations

import importlib
import logging
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from fnn.core import errors
from fnn.core.durable import complete_file
from fnn.core.layer import Layer
from fnn.core.types import Tree
from fnn.export.plain import plain
from fnn.export.programs import any_sizes, names_of
from fnn.export.shapes import described, inputs_of, scope_of

APART = 5e-6  # of the largest output, or of 1
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32")


@errors.named
def onnx(
    path: str | os.PathLike,
    net: Layer,
    params: Tree,
    state: Tree,
    shapes: Any,
    *,
    constraints: Iterable[str] = (),
    examples: Any = None,
) -> None:
    """Write a network as one ONNX file, with its params in it: inputs -> y, in evaluation mode.

    The file is complete or absent, and it is compared with the network before it has its name: in
    onnxruntime its outputs are within 5e-6 of the network's (of their largest, if that is above 1).

    - `shapes`: as in `fnn.export.save`; named sizes are dynamic axes of these names.
    - `constraints`: what the network must know of named sizes, such as "time <= 128".
    - `examples`: inputs to compare at, like `shapes`; None draws normal numbers, and 0 and 1 for
      integers, with named sizes of 1 and of 3.

    Inputs and outputs have the names that the manifest of an artifact gives them.

    Raises ArtifactError if `path` exists; InputError, with the layer's path, for an operation that
    ONNX or its converter does not have, such as anything in bfloat16, and for a file that does not
    compute what the network does; ImportError without the extra `onnx`.
    """
    target = pathlib.Path(os.path.abspath(path))
    if target.exists():
        mend = "choose another, or remove the old one"
        raise errors.ArtifactError("a path that does not exist", f"{target}", mend)
    converter, runtime = _imported("jax2onnx"), _imported("onnxruntime")
    xs = inputs_of(shapes, scope_of(constraints))
    leaves, tree = jax.tree.flatten(xs)

    def flat(*leaves):
        return jax.tree.leaves(net.apply(params, state, *jax.tree.unflatten(tree, leaves))[0])

    used: dict[str, str] = {}  # the layer that uses an operation first
    narrow: dict[str, str] = {}  # the first operation of each layer in a dtype that is not ONNX's

    def visit(eqn: Any, layer: str) -> None:
        used.setdefault(eqn.primitive.name, layer)
        for v in eqn.outvars:
            if v.aval.dtype.name not in DTYPES:
                narrow.setdefault(layer, f"{eqn.primitive.name} of {v.aval.dtype.name}")

    with any_sizes():
        y = jax.eval_shape(lambda *xs: net.apply(params, state, *xs)[0], *xs)
        program = plain(flat, leaves, visit)
    if narrow:
        layer = next(filter(None, narrow), "")  # a cast of all params is at no layer's path
        raise _refused(layer, narrow[layer])
    ins = [said["name"] for said in described(names_of(net, len(xs)), xs)]
    outs = [said["name"] for said in described(["y"], [y])]
    data = _converted(converter, program, leaves, ins, outs, used)
    cases = [leaves_of(examples, leaves)] if examples is not None else _drawn(leaves)
    for case in cases:
        _compare(runtime, data, ins, case, jax.jit(flat)(*case))
    with complete_file(target) as file:
        file.write_bytes(data)


def _converted(
    converter: Any, program: ClosedJaxpr, xs: list, ins: list, outs: list, used: dict[str, str]
) -> bytes:
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # they warn of what they leave out of the file
        logger.setLevel(logging.ERROR)
    try:
        model = converter.to_onnx(
            jaxpr_as_fun(program), xs, input_names=ins, output_names=outs, model_name="fnn"
        )
        return model.SerializeToString()
    except Exception as error:
        words = set(re.findall(r"\w+", str(error)))
        name = next((name for name in used if name in words), None)
        what = f"{name or 'an operation'} that it cannot convert ({_line(error)})"
        raise _refused(used.get(name or "", ""), what) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refused(layer: str, what: str) -> errors.InputError:
    mend = "put another layer in its place (fnn.swap), or save it by fnn.export.save"
    error = errors.InputError("operations that ONNX and jax2onnx have", what, mend)
    error.path = layer
    return error


def _compare(runtime: Any, data: bytes, names: list, case: list, wanted: list) -> None:
    """Refuse a file whose outputs are not those of the network."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        got = session.run(None, dict(zip(names, map(np.asarray, case), strict=True)))
    except Exception as error:
        raise _refused("", f"what onnxruntime refuses ({_line(error)})") from error
    for a, b in zip(got, map(np.asarray, wanted), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise _refused("", f"an output {errors.show(a)} for {errors.show(b)}")
        same = (a == b) | (np.isnan(a) & np.isnan(b)) if a.dtype.kind == "f" else a == b
        scale = np.abs(b, where=np.isfinite(b), out=np.ones_like(b)).max(initial=1)
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.where(same, 0, a.astype(float) - b.astype(float))).max(initial=0)
        if not apart <= APART * scale:
            raise _refused("", f"outputs that are {apart / scale:.1e} apart")


def _drawn(xs: list) -> list[list]:
    """Random inputs, with two sizes for each name. Integers may be indices into these sizes."""
    rng, cases = np.random.default_rng(0), []
    for size in (1, 3):
        case = []
        for x in xs:
            shape = [d if isinstance(d, int) else size for d in x.shape]
            dtype = jnp.dtype(x.dtype)
            floating = jnp.issubdtype(dtype, jnp.floating)
            a = rng.normal(size=shape) if floating else rng.integers(0, min(size, 2), shape)
            case.append(jnp.asarray(a.astype(dtype)))
        cases.append(case)
    return cases


def leaves_of(examples: Any, xs: list) -> list:
    """The arrays of examples, which are like the inputs."""
    several = isinstance(examples, (list, tuple))
    leaves = jax.tree.leaves(tuple(examples) if several else (examples,))
    if len(leaves) != len(xs):
        raise errors.InputError(f"{len(xs)} examples", errors.show(examples), "pass them as shapes")
    return [jnp.asarray(a) for a in leaves]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"an ONNX file needs {name}: pip install 'fnn[onnx]'") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
