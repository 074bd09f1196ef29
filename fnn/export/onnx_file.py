"""A network as an ONNX file, for runtimes that know nothing of JAX."""

from __future__ import annotations

import importlib
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from fnn.core import errors
from fnn.core.durable import complete_file
from fnn.core.layer import Layer
from fnn.core.types import Tree
from fnn.export.plain import equations, layer_of, plain
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

    Inputs and outputs have the names that the manifest of an artifact gives them. An index out of
    range, which JAX clips, is an error in ONNX.

    Raises ArtifactError if `path` exists; InputError, with the layer's path, for an operation that
    ONNX or its converter does not have, such as anything in bfloat16, and for a file that does not
    compute what the network does; ImportError without the extra `onnx`.

    >>> import fnn, onnxruntime, tempfile  # doctest: +SKIP
    >>> net, path = fnn.dense(3), tempfile.mkdtemp() + "/dense.onnx"  # doctest: +SKIP
    >>> params, state = net.init(jax.random.key(0), (1, 4))  # doctest: +SKIP
    >>> onnx(path, net, params, state, ("batch", 4))  # doctest: +SKIP
    >>> session = onnxruntime.InferenceSession(path)  # doctest: +SKIP
    >>> session.run(None, {"x": np.ones((2, 4), np.float32)})[0].shape  # doctest: +SKIP
    (2, 3)
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

    with any_sizes():
        y = jax.eval_shape(lambda *xs: net.apply(params, state, *xs)[0], *xs)
        program = plain(flat, leaves)
    _check_dtypes(program)
    ins = [said["name"] for said in described(names_of(net, len(xs)), xs)]
    outs = [said["name"] for said in described(["y"], [y])]
    outs = [f"{name}_out" if name in ins else name for name in outs]  # names are for one value
    cases = [leaves_of(examples, leaves)] if examples is not None else _drawn(leaves)
    try:
        data = _converted(converter, program, leaves, ins, outs)
        for case in cases:
            _compare(runtime, data, ins, case, jax.jit(flat)(*case))
    except Exception as error:
        raise _culprit(converter, runtime, program, error) from error
    with complete_file(target) as file:
        file.write_bytes(data)


def _check_dtypes(program: ClosedJaxpr) -> None:
    narrow: dict[str, str] = {}  # the first operation of each layer in a dtype that is not ONNX's
    for eqn in equations(program.jaxpr):
        for v in eqn.outvars:
            if v.aval.dtype.name not in DTYPES:
                narrow.setdefault(layer_of(eqn), f"{eqn.primitive.name} of {v.aval.dtype.name}")
    if narrow:
        layer = next(filter(None, narrow), "")  # a cast of all params is at no layer's path
        raise _refused(layer, narrow[layer])


def _converted(converter: Any, program: ClosedJaxpr, xs: list, ins: Any, outs: Any) -> bytes:
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # they warn of what they leave out of the file
        logger.setLevel(logging.ERROR)
    try:
        model = converter.to_onnx(
            jaxpr_as_fun(program), xs, input_names=ins, output_names=outs, model_name="fnn"
        )
        return model.SerializeToString()
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(runtime: Any, data: bytes, names: list, case: list, wanted: list) -> None:
    """Raise ValueError for a file whose outputs are not those of the network."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    got = session.run(None, dict(zip(names, map(np.asarray, case), strict=True)))
    for a, b in zip(got, map(np.asarray, wanted), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"gives {errors.show(a)} for {errors.show(b)}")
        same = (a == b) | (np.isnan(a) & np.isnan(b)) if a.dtype.kind == "f" else a == b
        scale = np.abs(b, where=np.isfinite(b), out=np.ones_like(b)).max(initial=1)
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.where(same, 0, a.astype(float) - b.astype(float))).max(initial=0)
        if not apart <= APART * scale:
            raise ValueError(f"is {apart / scale:.1e} apart in onnxruntime")


def _culprit(converter: Any, runtime: Any, program: ClosedJaxpr, error: Exception) -> Exception:
    """The error that names the first operation which alone fails, and its layer."""
    for eqn in program.jaxpr.eqns:
        given = [v for v in eqn.invars if not isinstance(v, Literal)]
        consts = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        free = [v for v in given if v not in consts]
        xs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in free]
        sizes = {str(d) for x in xs for d in x.shape}
        if any(
            not isinstance(d, int) and str(d) not in sizes
            for v in eqn.outvars
            for d in v.aval.shape
        ):
            continue  # alone it does not know the size

        def alone(*xs, eqn=eqn, free=free, consts=consts):
            known = consts | dict(zip(free, xs, strict=True))
            ins = [v.val if isinstance(v, Literal) else known[v] for v in eqn.invars]
            out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
            return out if eqn.primitive.multiple_results else [out]

        try:
            one = jax.make_jaxpr(alone)(*xs)
            data = _converted(converter, one, xs, None, None)
            names = [f"in_{i}" for i in range(len(xs))]
            fixed = all(isinstance(d, int) or str(d).isidentifier() for x in xs for d in x.shape)
            for case in _drawn(xs) if fixed else ():
                _compare(runtime, data, names, case, jax.jit(alone)(*case))
        except Exception as found:
            return _refused(layer_of(eqn), f"{eqn.primitive.name} ({_line(found)})")
    return _refused("", f"a network that fails as a whole ({_line(error)})")


def _refused(layer: str, what: str) -> errors.InputError:
    mend = "put another layer in its place (fnn.swap), or save it by fnn.export.save"
    error = errors.InputError("what jax2onnx and onnxruntime compute as JAX does", what, mend)
    error.path = layer
    return error


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
