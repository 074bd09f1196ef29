"""What raises: checks of options, inputs and keys, and the mistakes that layers refuse."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from fnn.core.dtypes import is_key
from fnn.core.errors import (
    ComposeError,
    DtypeError,
    FnnError,
    InputError,
    OptionError,
    RandomKeyError,
    ShapeError,
    SublayerError,
    TransformError,
    names,
    path_of,
    shapes,
    show,
)


def count(name: str, value: Any, least: int = 1) -> int:
    """A count: an int of at least `least`."""
    good = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least
    if not good:
        raise OptionError(
            f"{name} to be an int of at least {least}", show(value), f"pass {name}={least} or more"
        )
    return int(value)


def counts(name: str, value: Any, length: int | None = None, least: int = 1) -> tuple:
    """One count per axis; a single int stands for all `length` axes."""
    if isinstance(value, (int, np.integer)) and length is not None:
        value = (value,) * length
    many = "one or more ints" if length is None else f"{length} ints"
    values = tuple(value) if isinstance(value, (tuple, list)) else ()
    if not values or length not in (None, len(values)):
        raise OptionError(f"{name} to be a tuple of {many}", show(value), "pass one int per axis")
    return tuple(count(name, v, least) for v in values)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} to be one of {names(choices)}", show(value), "pass one of them")


def number(name: str, value: Any, low: float, high: float, *, open_high=False) -> None:
    """A number in [low, high], or in [low, high); tracers pass, since their values are unknown."""
    span = f"[{low}, {high}{')' if open_high else ']'}"
    array = isinstance(value, (jax.Array, np.ndarray, np.generic)) and value.shape == ()
    real = array and any(jnp.issubdtype(value.dtype, kind) for kind in (np.floating, np.integer))
    if isinstance(value, bool) or not (real or isinstance(value, (int, float))):
        raise OptionError(f"{name} to be a number in {span}", show(value), "pass one number")
    if isinstance(value, jax.core.Tracer):
        return
    value = np.asarray(value) if array else value  # under jit, jax would trace the comparison
    if not (low <= value < high if open_high else low <= value <= high):
        raise OptionError(f"{name} in {span}", repr(float(value)), f"pass a number in {span}")


def positive(name: str, value: Any) -> None:
    """A number above 0; tracers pass."""
    number(name, value, 0.0, float("inf"), open_high=True)
    if not isinstance(value, jax.core.Tracer) and np.asarray(value) == 0:
        raise OptionError(f"{name} above 0", "0", "pass a larger number")


def floating(name: str, value: Any) -> Any:
    """An option that is a floating dtype."""
    try:
        array = isinstance(value, (jax.Array, np.ndarray, np.generic))
        dtype = None if array or value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = show(value) if dtype is None else dtype.name
        raise OptionError(f"{name} to be a floating dtype", got, "pass jnp.bfloat16 or another")
    return dtype


def floating_leaves(
    what: str,
    tree: Any,
    mend: str = "keep integers out of what is trained",
    or_complex: bool = False,
) -> None:
    """A tree whose leaves all have floating dtypes, or complex ones if allowed."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype, name = jnp.result_type(leaf), path_of(path)
        whose = f"{name} {show(leaf)}".strip()
        if jnp.issubdtype(dtype, jnp.complexfloating) and not or_complex:
            raise DtypeError(f"{what} of real floating dtypes", whose, AS_REAL)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise DtypeError(f"{what} of floating dtypes", whose, mend)


AS_REAL = "train the real and the imaginary parts as params of their own"


def real(what: str, x: Any) -> None:
    """An array that is not complex."""
    if jnp.iscomplexobj(x):
        raise DtypeError(f"{what} of real numbers", show(x), AS_REAL)


def function(name: str, value: Any, of: str) -> None:
    if not callable(value):
        raise OptionError(f"{name} to be a function of {of}", show(value), "pass a function")


def initializer(name: str, value: Any) -> None:
    """A function of (key, shape, dtype), not a builder of such functions."""
    try:
        inspect.signature(value).bind(None, None, None)
    except TypeError:
        raise OptionError(
            f"{name} to be a function of (key, shape, dtype)",
            show(value),
            "build it, as fnn.initializers.he_normal()",
        ) from None
    except ValueError:  # a callable that does not tell its signature
        return


def key(value: Any) -> None:
    """One typed key (or the older uint32 form of it)."""
    dtype = getattr(value, "dtype", None)
    typed = is_key(value)
    raw = dtype == np.uint32 and value.shape in ((2,), (4,))
    if typed and value.shape == () or raw and value.shape == _raw_shape():
        return
    mend = "pass jax.random.key(0)"
    if raw:
        mend = f'name its generator: jax.random.wrap_key_data(key, impl="{_IMPLS[value.shape]}")'
    if typed:
        mend = "one call takes one key: for many, jax.vmap over them"
    raise RandomKeyError("a key", show(value), mend)


_IMPLS = {(2,): "threefry2x32", (4,): "rbg"}


def _raw_shape() -> tuple[int, ...]:
    """The shape of a key in the older form, of JAX's default generator."""
    config: Any = jax.config
    return (2,) if config.jax_default_prng_impl == "threefry2x32" else (4,)


def need_key(key: Any) -> None:
    if key is None:
        raise RandomKeyError(
            "a key to draw from", "key=None", "pass key= to apply, as in net.apply(..., key=key)"
        )


def typed_key(value: Any) -> jax.Array:
    """A key in its typed form."""
    key(value)
    return jax.random.wrap_key_data(value) if value.dtype == np.uint32 else value


def rank(x: Any, least: int, layout: str, name: str = "x") -> None:
    if not hasattr(x, "shape"):  # a tree of inputs
        raise InputError(f"{name} to be one array", f"{name} {show(x)}", "pass one array")
    if len(x.shape) < least:
        raise ShapeError(
            f"{name} {layout}, at least {least} axes",
            f"{name} {tuple(x.shape)}",
            f"reshape {name} to that layout",
        )


def array(x: Any, least: int, layout: str, name: str = "x") -> None:
    """An input of floating dtype with at least `least` axes."""
    rank(x, least, layout, name)
    if not jnp.issubdtype(x.dtype, np.floating):
        raise DtypeError(
            f"{name} of a floating dtype", f"{name} {show(x)}", f"cast: {name}.astype(jnp.float32)"
        )


def examples(name: str, tree: Any) -> int:
    """The number of examples in a tree of arrays: the size of their common leading axis."""
    sizes = {jnp.shape(a)[:1] for a in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes == {()}:
        raise ShapeError(
            f"{name}, arrays with one leading axis [N, ...]",
            show(tree),
            "stack the examples of each along axis 0",
        )
    return sizes.pop()[0]


def mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} to be a dict of functions", show(value), "name them in a dict")


# --- what leaf layers and compose refuse


def wrong_arity(least: float, most: float, came: int) -> NoReturn:
    wanted = f"{least}" if least == most else f"{least} or more"
    raise InputError(
        f"{wanted} input{'s' if wanted != '1' else ''}",
        f"{came}",
        "call net(params, x, state=state), net.apply(params, state, x, key=key, train=True) or "
        "net.init(key, x)",
    )


def unknown_input(name: str, known: Iterable[str]) -> NoReturn:
    raise InputError(
        f"inputs among {names(known)}", name, "pass inputs by position, or under their names"
    )


def missing_input(name: str) -> NoReturn:
    raise InputError(f"the input {name}", "none", "pass it, by position or by its name")


def input_twice(name: str) -> NoReturn:
    raise InputError(f"{name} once", "it by position and by name", "leave one out")


def not_apply(name: str) -> NoReturn:
    error = InputError(
        "inputs and state in a call, which evaluates",
        "key or train",
        "train by net.apply(params, state, x, key=key, train=True)",
    )
    error.layer = name
    raise error


def rebuilt_by_hand(name: str) -> NoReturn:
    raise ComposeError(
        f"a {name} that can be rebuilt over other sublayers",
        "one whose apply or specs were replaced by hand, which rebuilding would undo",
        "wrap it instead, as fnn.wrap(layer, apply)",
    )


def not_an_array(x: Any) -> NoReturn:
    if isinstance(x, bool):
        raise InputError(
            "arrays", repr(x), "train= is given by name; as an input, pass jnp.array of it"
        )
    raise InputError(
        "arrays (or shapes, where only shapes matter)",
        show(x),
        "pass an array, a jax.ShapeDtypeStruct, or a shape such as (8, 28, 28, 1)",
    )


def replaced_by_hand(name: str) -> NoReturn:
    raise InputError(
        "a layer as its builder made it",
        f"{name}, whose fields were replaced since",
        "change what it does with fnn.wrap, by functions at the top of a module",
    )


def traced_shape() -> NoReturn:
    raise InputError(
        "a shape of plain ints",
        "a tuple of traced values",
        "jit made the shape an argument: close over it, as "
        "jax.jit(lambda key: net.init(key, shape))",
    )


def not_a_pair(of: str, pair: str, got: Any) -> NoReturn:
    raise InputError(f"{of} to return {pair}", show(got), f"return {pair.strip('()')}")


def uncalled(missing: Iterable[str], body: str) -> NoReturn:
    raise ComposeError(
        "every declared sublayer to be called",
        f"no call of {names(missing)} in {body}",
        "call it in the body, or leave it out of compose",
    )


def disagreement(first: Any, first_xs: tuple, second: Any, second_xs: tuple) -> NoReturn:
    def call(needs: Any, xs: tuple) -> str:
        return f"{show(needs[0])} for x {shapes(xs)}"

    raise ComposeError(
        "all calls of one sublayer to need the same params",
        f"{call(first, first_xs)} and {call(second, second_xs)}",
        "declare two sublayers, or give both calls inputs of one shape and dtype",
    )


def no_carry(name: str) -> NoReturn:
    raise ComposeError(
        "a recurrent cell, which has a carry", f"{name} without one", f"call f.{name}(x) alone"
    )


def unknown_params(name: str) -> NoReturn:
    raise ComposeError(
        f"a call of f.{name} before its params or carry are used",
        "none so far",
        f"call f.{name} first: the call tells what its params are",
    )


def unknown_name(name: str, known: Iterable[str]) -> NoReturn:
    raise SublayerError(
        f"one of the declared sublayers {names(known)}", name, "declare it in compose"
    )


_INSTEAD = (
    "call it outside, as layers take any leading axes; repeat, rnn, ensemble or remat are the "
    "transforms that split keys and stack state"
)


def key_in_transform(inner: FnnError | str) -> TransformError:
    error = TransformError(
        "no random draw inside a transform that the body opens (scan, vmap, cond, grad, "
        "checkpoint), where one draw would silently repeat",
        "one" if isinstance(inner, FnnError) else inner,
        _INSTEAD,
    )
    error.path = inner.path if isinstance(inner, FnnError) else ""
    return error


def state_in_transform() -> TransformError:
    return TransformError(
        "no change of state inside a transform that the body opens (scan, vmap, cond, grad, "
        "checkpoint), which the new state would leak out of",
        "one",
        _INSTEAD,
    )


def automatic_axes(error: Exception, *trees: Any) -> None:
    """Name the mend of an error of JAX, if arrays are on a mesh of explicit axes.

    There JAX derives the sharding of every operation, and refuses those for which it cannot, such
    as a lookup in a table or a loop whose first carry is whole.
    """
    arrays = [x for x in jax.tree.leaves(trees) if isinstance(x, jax.Array)]
    axes = [jax.typeof(x).sharding.mesh.axis_types for x in arrays]
    if any(AxisType.Explicit in types for types in axes) and not isinstance(error, FnnError):
        raise InputError(
            "arrays on a mesh of automatic axes",
            f"explicit ones, where JAX says: {str(error).splitlines()[0]}",
            "make the mesh by fnn.sharding.mesh(data=8), or call jax.sharding.auto_axes(f, "
            "out_sharding=...) in place of f",
        ) from error
