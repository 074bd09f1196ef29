"""Property tests of layers.

Each property is a function below, named for what it checks; a failure is an AssertionError that
names the property, the layer and the numbers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.core import errors
from fnn.core.declarations import arrays_of
from fnn.core.dtypes import is_floating
from fnn.core.layer import Layer
from fnn.core.reserved import NOTES, without
from fnn.core.shapes import as_dtype, as_struct, from_numpy
from fnn.core.types import Tree


def check_layer(layer: Layer, *xs: Any, batched: bool = True) -> None:
    """Check that a layer fulfils fnn's contract for inputs like `xs`; raise AssertionError if not.

    - specs equal the run (names, shapes, dtypes), and init draws what specs declare;
    - `jit` equals eager, in both modes, and a second call does not trace again;
    - a lane of `vmap` equals the batch's row, in evaluation mode (where `batched`);
    - `jvp`, `grad`, `jvp` of `grad` (the columns of `jacfwd(grad)`) and `vmap` over them agree
      with central differences in float64;
    - bfloat16, float32 and float64 inputs give outputs of the same dtype;
    - nested inside `scan`, `checkpoint`, `vmap`, `grad` and `jit`, it is the same;
    - state keeps its structure, and in evaluation mode comes back unchanged;
    - params are strict: a missing, extra or misshapen entry is refused by an fnn error;
    - an input sharded over all devices gives what one device gives (where `batched`).

    - `xs`: shapes (for standard normal values) or arrays; integer arrays are neither differentiated
      nor cast, and if all are integers, y may have any dtype. Where `batched`, their first axis is
      the batch.

    >>> import fnn
    >>> check_layer(fnn.dense(3), (4, 5))
    """
    xs = tuple(_example(x, i) for i, x in enumerate(xs))
    params, state = layer.init(jax.random.key(0), *xs)
    check_specs(layer, params, state, xs)
    check_jit(layer, params, state, xs)
    check_state(layer, params, state, xs)
    check_strict(layer, params, state, xs)
    check_dtypes(layer, xs)
    check_derivatives(layer, xs)
    check_inside(layer, params, state, xs)
    if batched and xs:
        check_rows(layer, params, state, xs)
        check_sharded(layer, params, state, xs)


def check_specs(layer: Layer, params: Tree, state: Tree, xs: tuple) -> None:
    """Specs equal the run: no array differs from its declaration."""
    declared = arrays_of(layer.specs(*xs))
    _expect(layer, "init draws what specs declare", _structs((params, state)), declared)
    again = arrays_of(layer.specs(*map(as_struct, xs)))
    _expect(layer, "specs depend on shape and dtype alone", again, declared)
    for train in (False, True):
        ran = _run(layer, train)(params, state, *xs)
        traced = jax.eval_shape(_run(layer, train), params, state, *xs)
        _expect(layer, f"eval_shape equals the run, train={train}", _structs(ran), _structs(traced))


def check_jit(layer: Layer, params: Tree, state: Tree, xs: tuple) -> None:
    """Jit equals eager in both modes, and a second call with the same shapes does not trace."""
    traces = []

    def run(*args):
        traces.append(None)
        return _run_both(layer)(*args)

    jitted = jax.jit(run)
    first = jitted(params, state, *xs)
    jitted(*jax.tree.map(jnp.copy, (params, state)), *xs)
    _expect(layer, "one trace for two calls", len(traces), 1)
    for train, eager in enumerate(_run_both(layer)(params, state, *xs)):
        _close(layer, f"jit equals eager, train={bool(train)}", first[train], eager, 1e-5)


def check_state(layer: Layer, params: Tree, state: Tree, xs: tuple) -> None:
    """State keeps its structure, and evaluation mode returns the same array objects."""
    _, after = _run(layer, True)(params, state, *xs)
    _expect(layer, "training keeps the structure of state", _structs(after), _structs(state))
    _, after = layer.apply(params, state, *xs)
    same = [a is b for a, b in zip(*map(jax.tree.leaves, (after, state)), strict=True)]
    _expect(layer, "evaluation gives state back unchanged", all(same), True)


def check_strict(layer: Layer, params: Tree, state: Tree, xs: tuple) -> None:
    """A missing, extra or misshapen entry anywhere in params or state is refused."""
    state = without(NOTES, state)  # which evaluation does not need
    for what, tree in (("params", params), ("state", state)):
        for wrong, mutated in mutations(tree):
            trees = (mutated, state) if what == "params" else (params, mutated)
            for transform in (lambda f: f, jax.jit):
                try:
                    transform(lambda a, b: layer.apply(a, b, *xs)[0])(*trees)
                except errors.FnnError:
                    continue
                raise AssertionError(f"{layer.name}: {what} with {wrong} is accepted")


def mutations(tree: dict, path: str = "") -> list[tuple[str, dict]]:
    """Trees like `tree` with one thing wrong: (what is wrong, the tree)."""
    wrong = [
        (f"an extra entry in {path or 'the root'}", {**tree, "extra_": from_numpy(np.ones(1))})
    ]
    for name, value in tree.items():
        where = f"{path}/{name}" if path else name
        wrong.append((f"no {where}", {k: v for k, v in tree.items() if k != name}))
        if isinstance(value, dict):
            wrong += [(w, {**tree, name: v}) for w, v in mutations(value, where)]
        else:
            plain = np.asarray(value)
            for what, bad in (("rank", plain[None]), ("dtype", plain.astype(np.int8))):
                wrong.append((f"{where} of another {what}", {**tree, name: from_numpy(bad)}))
    return wrong


def check_rows(layer: Layer, params: Tree, state: Tree, xs: tuple) -> None:
    """In evaluation mode, a row of the batch equals the example alone under vmap."""

    @jax.jit
    def both(params, state, *xs):
        rows = jax.vmap(lambda *row: layer(params, *row, state=state))(*xs)
        return layer(params, *xs, state=state), rows

    batch, rows = both(params, state, *xs)
    _close(layer, "vmap over examples equals the batch", rows, batch, 1e-5)


def check_sharded(layer: Layer, params: Tree, state: Tree, xs: tuple) -> None:
    """With the batch sharded over all devices, both modes give what one device gives."""
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    tiled = jax.tree.map(lambda x: np.concatenate([x] * mesh.size), xs)
    whole = NamedSharding(mesh, PartitionSpec())
    apart = jax.device_put(tiled, NamedSharding(mesh, PartitionSpec("batch")))
    run = jax.jit(_run_both(layer))
    sharded, one = run(*jax.device_put((params, state), whole), *apart), run(params, state, *tiled)
    for train in (False, True):
        _close(layer, f"sharded equals whole, train={train}", sharded[train], one[train])


def check_inside(layer: Layer, params: Tree, state: Tree, xs: tuple) -> None:
    """The gradient through jit(grad(vmap(scan(checkpoint)))) is the gradient."""
    floating = _floating(xs)

    def loss(params, inputs):
        y, _ = layer.apply(params, state, *_with_floating(xs, inputs))
        leaves = jax.tree.leaves(y)
        return sum((jnp.sum(jnp.sin(y)) for y in leaves if is_floating(y)), jnp.zeros(()))

    def scanned(params, inputs):
        def turn(total, _):
            return total + jax.checkpoint(loss)(params, inputs), None

        return jax.lax.scan(turn, jnp.zeros(()), None, length=2)[0]

    def mean(params, inputs):
        two = jax.tree.map(lambda x: jnp.stack([x, x]), inputs)
        return jnp.mean(jax.vmap(scanned, (None, 0))(params, two)) / 2 if two else loss(params, [])

    @jax.jit
    def gradients(*point):
        return jax.jit(jax.grad(mean, (0, 1)))(*point), jax.grad(loss, (0, 1))(*point)

    inside, plain = gradients(params, floating)
    _close(layer, "the gradient inside transforms is the gradient", inside, plain, 1e-4)


def check_dtypes(layer: Layer, xs: tuple) -> None:
    """The output has the input's floating dtype, in both modes."""
    if not any(map(is_floating, jax.tree.leaves(xs))):
        return  # integers determine no dtype
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
            cast = tuple(as_dtype(x, dtype) for x in xs)
            params, state = arrays_of(layer.specs(*cast))
            program = jax.jit(_run_both(layer)).lower(params, state, *cast)
            if dtype != jnp.float32:  # which has run
                program.compile()
            for train in (False, True):
                y, _ = program.out_info[train]
                got = {str(leaf.dtype) for leaf in jax.tree.leaves(y) if is_floating(leaf)}
                _expect(layer, f"dtype out, train={train}", got, {jnp.dtype(dtype).name})


def check_derivatives(layer: Layer, xs: tuple, step: float = 1e-6) -> None:
    """First and second derivatives along random directions equal central differences.

    Where training and evaluation differ, second derivatives are checked in training mode.
    """
    with jax.enable_x64(True):
        xs = tuple(as_dtype(x, jnp.float64) for x in xs)
        params, state = layer.init(jax.random.key(0), *xs)
        floating = _floating(xs)
        wide = as_dtype(params, jnp.float64)
        with contextlib.suppress(
            errors.FnnError
        ):  # params without inputs have a dtype of their own
            jax.eval_shape(_run(layer, False), wide, state, *xs)
            params = wide

        def loss(run, point):
            params, inputs = point
            y, _ = run(params, state, *_with_floating(xs, inputs))
            leaves = [leaf for leaf in jax.tree.leaves(y) if is_floating(leaf)]
            return sum(jnp.sum(jnp.sin(leaf + i)) for i, leaf in enumerate(leaves))

        # keys are made here, not in the program, and of the kind that compiles fast
        runs = {train: _run(layer, train, "unsafe_rbg") for train in (True, False)}
        losses = {train: functools.partial(loss, run) for train, run in runs.items()}
        point = (params, floating)
        directions = jax.tree.map(lambda *two: np.stack(two), *(_like(point, s) for s in (1, 2)))
        programs = {}  # of jvp, where rules of derivatives show
        for train, f in losses.items():
            jvp = jax.make_jaxpr(lambda p, v, f=f: jax.jvp(f, (p,), (v,)))(point, point)
            programs[str(jvp)] = train
        for i, train in enumerate(programs.values()):  # one, where both modes are one program
            mode = "training" if train else "evaluation"
            _check_derivatives(layer, mode, losses[train], point, directions, step, not i)


def _check_derivatives(layer, mode, f: Callable, point, directions, step, second) -> None:
    def along(v):
        slope = jax.jvp(f, (point,), (v,))[1]
        if not second:
            return slope, _dot(jax.grad(f)(point), v)
        gradient, forward = jax.jvp(jax.grad(f), (point,), (v,))
        reverse = jax.grad(lambda p: _dot(jax.grad(f)(p), v))(point)
        return slope, _dot(gradient, v), forward, reverse

    @jax.jit
    def differences(directions):  # loops, so that the gradient is traced and compiled once
        def along(v):
            def at(step):
                return jax.value_and_grad(f)(jax.tree.map(lambda a, b: a + step * b, point, v))

            both = jax.lax.map(at, jnp.array([step, -step]))
            return jax.tree.map(lambda d: (d[0] - d[1]) / (2 * step), both)

        return jax.lax.map(along, directions)

    derivatives = jax.device_get(jax.jit(jax.vmap(along))(directions))
    numerics = jax.device_get(differences(directions))
    for i in range(2):
        slope, from_grad, *bends = jax.tree.map(lambda d, i=i: d[i], derivatives)
        numeric, numeric_grad = jax.tree.map(lambda d, i=i: d[i], numerics)
        _close(layer, f"jvp equals differences in {mode}", slope, numeric, 1e-5)
        _close(layer, f"grad equals differences in {mode}", from_grad, numeric, 1e-5)
        for name, bend in zip(("jvp of grad", "grad of grad"), bends, strict=second):
            _close(layer, f"{name} equals differences in {mode}", bend, numeric_grad, 1e-4)


# --- helpers


def _run(layer: Layer, train: bool, impl: str | None = None) -> Callable:
    key = jax.random.key(7, impl=impl) if train else None
    return lambda params, state, *xs: layer.apply(params, state, *xs, key=key, train=train)


def _run_both(layer: Layer) -> Callable:
    """Evaluation and training, in one program."""
    return lambda *args: (_run(layer, False)(*args), _run(layer, True)(*args))


def _example(x: Any, i: int) -> Any:
    if hasattr(x, "dtype") and not isinstance(x, jax.ShapeDtypeStruct):
        return from_numpy(x)
    struct = as_struct(x)
    return _like(struct, 3 + i)


def _like(tree: Tree, seed: int) -> Tree:
    """Standard normal values, drawn by NumPy: JAX would compile a program for each shape."""
    rng = np.random.default_rng(seed)

    def draw(a: Any) -> jax.Array:
        values = rng.standard_normal(a.shape)
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            values = (values + 1j * rng.standard_normal(a.shape)) / np.sqrt(2)
        return from_numpy(values.astype(a.dtype))

    return jax.tree.map(draw, tree)


def _floating(xs: tuple) -> list[Any]:
    """The inputs that are differentiated."""
    return [x for x in jax.tree.leaves(xs) if is_floating(x)]


def _with_floating(xs: tuple, floating: Sequence) -> tuple:
    """The inputs with the differentiated ones replaced."""
    values = iter(floating)
    return jax.tree.map(lambda x: next(values) if is_floating(x) else x, xs)


def _dot(a: Any, b: Any) -> Any:
    return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def _structs(tree: Tree) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _expect(layer: Layer, what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise AssertionError(f"{layer.name}: {what}: expected {wanted}, got {got}")


def _close(layer: Layer, what: str, got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    got, wanted = jax.device_get((got, wanted))
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        scale = max(1.0, float(np.max(np.abs(b), initial=0.0)))
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * scale, err_msg=f"{layer.name}: {what}"
        )
