"""An array in JSON, read as one flat list of numbers.

A list for each row, and for each pixel of an image with one channel, takes orjson three times as
long as the numbers alone, and flattening the lists takes longer still: reading a digit of 28 x 28
takes 0.4 of the time this way. To be deleted when `python -m benchmarks.serving` shows as many
requests a second without it.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy as np

from fnn.serve.interface import Form

BLANKS = b" \t\n\r"
NUMBER = b"0123456789+-.eE"
ZEROS = bytes.maketrans(NUMBER, b"0" * len(NUMBER))


def numbers(body: bytes | bytearray, form: Form) -> tuple[tuple[int, ...], list[Any]] | None:
    """The shape and the numbers of a body such as {"x": [[1, 2], [3, 4]]} with one input.

    None for whatever is not JSON of just this form: it is for the caller to read and to refuse.
    """
    import orjson

    found, example = around(form.name).fullmatch(body), form.shape[1:]
    if not found or not all(isinstance(size, int) for size in example):
        return None
    text = found[1]
    tokens = text.translate(ZEROS, BLANKS)  # such as [[0,000],[00,0]]
    if misplaced(tokens):
        return None
    shape = shape_of(tokens.translate(None, b"0"), example)
    if shape is None:
        return None
    try:
        flat = orjson.loads(b"[" + text.translate(None, b"[]") + b"]")
    except ValueError:
        return None
    return (shape, flat) if len(flat) == math.prod(shape) else None


def misplaced(tokens: bytes | bytearray) -> bool:
    """Whether a number stands before [ or after ]; each `in` would take twice as long as both."""
    codes = np.frombuffer(tokens, np.uint8)
    before, after = codes[:-1], codes[1:]
    opened = (before == ord("0")) & (after == ord("["))
    closed = (before == ord("]")) & (after == ord("0"))
    return bool((opened | closed).any())


def shape_of(lists: bytes | bytearray, example: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The shape of nested lists of one example or a batch, given without their numbers.

    >>> shape_of(b"[[,],[,],[,]]", (2,)), shape_of(b"[,]", (2,)), shape_of(b"[,,]", (2,))
    ((3, 2), (2,), None)
    """
    one = brackets(example)
    if lists == one:
        return example
    rows = (lists.count(b",") + 1) // max(math.prod(example), 1)
    same = len(lists) == rows * (len(one) + 1) + 1 and lists == nested(one, rows)
    return (rows, *example) if same else None


@functools.lru_cache(maxsize=64)
def brackets(shape: tuple[int, ...]) -> bytes:
    inner = b""
    for size in reversed(shape):
        inner = nested(inner, size)
    return inner


def nested(inner: bytes, size: int) -> bytes:
    return b"[" + b",".join([inner] * size) + b"]"


@functools.lru_cache(maxsize=64)
def around(name: str) -> re.Pattern[bytes]:
    """What an object with one entry has around its value."""
    import orjson

    blanks = b"[" + BLANKS + b"]*"
    parts = (b"", rb"\{", re.escape(orjson.dumps(name)), b":(.*)}", b"")
    return re.compile(blanks.join(parts), re.DOTALL)
