"""Requests and answers as bytes: JSON, and NumPy's npy for one array."""

from __future__ import annotations

import functools
import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from fnn.serve import flat_json
from fnn.serve.interface import Form, Interface

JSON, NPY = "application/json", "application/x-npy"
HEADER = 16_384  # bytes of a npy file in which its header ends; NumPy reads none longer


class Refused(Exception):
    """A request that is answered by a status and a reason."""

    def __init__(self, status: int, reason: str, **headers: str):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


def kind_of(content_type: str, interface: Interface) -> str:
    """JSON or NPY. Anything else is refused, forms and plain text above all: a page of another
    site could send those without asking."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (JSON, NPY):
        raise Refused(415, f"expected content-type {JSON} or {NPY}, got {kind or 'none'}")
    if kind == NPY and not interface.npy:
        raise Refused(415, f"{NPY} is for one input and one output; send {JSON}")
    return kind


def decode(
    body: bytes | bytearray, kind: str, interface: Interface
) -> tuple[tuple[np.ndarray, ...], bool]:
    """The inputs in a body, and whether they are one example rather than a batch.

    Raises Refused, 400 for what is not JSON or npy, 422 for what does not fit the interface.
    """
    forms = interface.inputs
    if kind == NPY:
        xs = [from_npy(body, forms[0])]
    else:
        xs = arrays(body, forms)
    alone = all(x.ndim == len(form.shape) - 1 for x, form in zip(xs, forms, strict=True))
    xs = tuple(np.asarray(x[None] if alone else x, order="C") for x in xs)
    check_shapes(xs, interface, alone)
    for x, form in zip(xs, forms, strict=True):
        if form.dtype.kind not in "iub" and not np.isfinite(x).all():
            raise Refused(422, f"{form.name}: expected finite numbers of {form.dtype}, got others")
    return xs, alone


def arrays(body: bytes | bytearray, forms: Sequence[Form]) -> list[np.ndarray]:
    """The inputs in a body of JSON."""
    if len(forms) == 1 and forms[0].dtype.kind not in "biu":  # else types are to be looked at
        found = flat_json.numbers(body, forms[0])
        if found:
            return [array(*found, forms[0])]
    values = from_json(body, [form.name for form in forms])
    return [array(*flat(values[form.name], form), form) for form in forms]


def from_npy(body: bytes | bytearray, form: Form) -> np.ndarray:
    """The array in a file of NumPy's, of which the header is read first and the data not copied."""
    start, size = (10, 2) if body[6:7] == b"\x01" else (12, 4)
    start += int.from_bytes(body[8 : 8 + size], "little")
    try:
        shape, by_columns, dtype = header(bytes(body[: min(start, HEADER)]))
    except Exception as error:  # NumPy raises many types for what is damaged
        raise Refused(400, "expected a npy file, version 1 or 2") from error
    if dtype != wire_dtype(form):
        raise Refused(422, f"{form.name}: expected {wire_dtype(form)}, got {dtype}")
    data = memoryview(body)[start:]
    size = 1
    for n in shape:
        size *= n
    if len(data) != size * dtype.itemsize:
        got = f"{len(data)} bytes of data for {shape} {dtype}"
        raise Refused(400, f"expected {size * dtype.itemsize}, got {got}")
    flat = np.frombuffer(data, dtype)
    x = flat.reshape(shape[::-1]).T if by_columns else flat.reshape(shape)
    return x.astype(form.dtype, copy=False)


@functools.lru_cache(maxsize=64)  # most requests have the same, and NumPy takes long to read it
def header(top: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, whether columns come first, and the dtype in the header of a npy file."""
    file = io.BytesIO(top)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    return read(file)


@functools.lru_cache(maxsize=64)
def written(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The header of a npy file, which `header` reads; rows come first."""
    file, descr = io.BytesIO(), np.lib.format.dtype_to_descr(dtype)
    said = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue()


def from_json(body: bytes | bytearray, names: Sequence[str] | None) -> dict[str, Any]:
    """The values of an object with these names; None is any."""
    import orjson  # several times as fast as json on an image

    try:
        try:
            values = orjson.loads(body)
        except ValueError:
            values = json.loads(body)  # takes NaN, so that the refusal can name the input
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"expected JSON, got none: {error}") from error
    if not isinstance(values, dict) or names is not None and sorted(values) != sorted(names):
        got = ", ".join(values)[:200] if isinstance(values, dict) else type(values).__name__
        wanted = f"an object with {', '.join(names)}" if names else "an object"
        raise Refused(422, f"expected {wanted}, got {got or 'none'}")
    return values


def flat(value: Any, form: Form) -> tuple[list[int], list[Any]]:
    """The shape of nested lists, and the numbers in them, which must be what the dtype holds.

    NumPy alone would make numbers of strings and booleans, and strings of both.
    """
    shape, level = [], [value]
    while (types := set(map(type, level))) == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise Refused(422, f"{form.name}: expected {form}, got lists of unequal length")
        shape += lengths
        level = list(itertools.chain.from_iterable(level))
    allowed = {"b": {bool}, "i": {int}, "u": {int}}.get(form.dtype.kind, {int, float})
    if not types <= allowed:
        wrong = ", ".join(sorted(t.__name__ for t in types - allowed))
        deep = "lists of unequal depth" if list in types else wrong
        raise Refused(422, f"{form.name}: expected {form}, got {deep}")
    return shape, level


def array(shape: Sequence[int], numbers: list[Any], form: Form) -> np.ndarray:
    """The array of such a shape, of one example or a batch."""
    if not len(form.shape) - 1 <= len(shape) <= len(form.shape):
        raise Refused(422, f"{form.name}: expected {form}, got shape {[*shape[:32]]}")
    try:
        with np.errstate(over="ignore"):  # what overflows is found to be infinite
            return np.fromiter(numbers, form.dtype, len(numbers)).reshape(shape)
    except OverflowError:
        raise Refused(422, f"{form.name}: expected {form}, got a number out of range") from None


def check_shapes(xs: Sequence[np.ndarray], interface: Interface, alone: bool) -> None:
    """Shapes as in the interface, with equal names for equal sizes, and a batch that fits."""
    pairs = zip(xs, interface.inputs, strict=True)
    if any(x.ndim != len(form.shape) or x.shape[1:] != form.shape[1:] for x, form in pairs):
        _check_sizes(xs, interface, alone)  # which may be right, where some are free
    rows = {len(x) for x in xs}
    most = interface.rows[-1]
    if len(rows) != 1 or not 1 <= min(rows) <= most:
        got = ", ".join(map(str, sorted(rows)))
        raise Refused(422, f"expected as many examples of each input, 1 to {most}, got {got}")


def _check_sizes(xs: Sequence[np.ndarray], interface: Interface, alone: bool) -> None:
    at: dict[str, int] = {}
    for x, form in zip(xs, interface.inputs, strict=True):
        fits = x.ndim == len(form.shape) and all(
            size == wanted if isinstance(wanted, int) else size in interface.sizes[wanted]
            for size, wanted in zip(x.shape[1:], form.shape[1:], strict=True)
        )
        names = zip(form.shape[1:], x.shape[1:], strict=False)
        if not fits or any(at.setdefault(d, n) != n for d, n in names if isinstance(d, str)):
            free = "".join(f", {name} of {sizes}" for name, sizes in interface.sizes.items())
            raise Refused(
                422, f"{form.name}: expected {form}{free}, got shape {list(x.shape[alone:])}"
            )


def encode(ys: Sequence[np.ndarray], kind: str, interface: Interface, alone: bool) -> bytes:
    """The answer in the form of the request; in JSON, numbers that are not finite become null."""
    import orjson

    if alone:
        ys = [y.take(0, axis) for y, axis in zip(ys, interface.axes, strict=True)]
    if kind == NPY:
        y = np.asarray(ys[0].astype(wire_dtype(interface.outputs[0]), copy=False))
        return written(y.shape, y.dtype) + y.tobytes()
    values = {f.name: plain(y) for f, y in zip(interface.outputs, ys, strict=True)}
    return orjson.dumps(values)


def plain(y: np.ndarray) -> Any:
    """Nested lists of numbers; orjson writes null for those that are not finite."""
    if y.dtype.kind == "c":
        raise TypeError("JSON has no complex numbers")
    return (y if y.dtype.kind in "iubf" else y.astype(np.float32)).tolist()  # bfloat16 and its like


def wire_dtype(form: Form) -> np.dtype:
    """The dtype in npy: NumPy's own, and float32 for those that it lacks."""
    return form.dtype if form.dtype.kind in "biufc" else np.dtype(np.float32)
