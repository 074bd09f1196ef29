"""Logs read back, as columns."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fnn.core import errors
from fnn.log.values import RESERVED, column, from_cell, from_json

CELL = re.compile(r'(?:"((?:[^"]|"")*)"|([^",]*))(,|$)')


@errors.named
def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The columns of a log that `fnn.log.jsonl` or `fnn.log.csv` wrote, by name.

    - `path`: of the file; its content tells which of the two it is. It may still be written.

    There is one entry per row, each the step of a train or an eval row: "step", "epoch", "time" (in
    seconds since 1970) and the metrics. Where a row has no value of a metric, it is NaN; integers
    stay integers where every row has one. A metric that is an array makes a column [rows, ...].
    A last line that a killed process did not finish is left out. Raises InputError if there is no
    such file, or if another line is not a row.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.jsonl"
    >>> _ = path.write_text(
    ...     '{"step":1,"epoch":0,"time":1.0,"train/loss":0.5}\\n'
    ...     '{"step":2,"epoch":0,"time":2.0,"train/loss":"NaN","train/correct":3}\\n'
    ...     '{"step":3,"ep'
    ... )
    >>> columns = read(path)
    >>> columns["step"], columns["train/loss"], columns["train/correct"]
    (array([1, 2]), array([0.5, nan]), array([nan,  3.]))
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        mend = "pass the path of a file that fnn.log.jsonl or fnn.log.csv writes"
        raise errors.InputError("a log", f"{path}: {error.strerror}", mend) from error
    rows = Rows(path)
    rows.extend(content.split(b"\n")[:-1])
    return {name: column(values) for name, values in rows.columns.items()}


class Rows:
    """The columns of a log, from whole lines as they come."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.columns: dict[str, list[Any]] = {name: [] for name in RESERVED}
        self.count = 0
        self.lines = 0
        self.parse: Callable[[bytes], dict[str, Any]] | None = None

    def extend(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self.lines += 1
            try:
                if self.parse is None:
                    self.parse = from_json if line.startswith(b"{") else _of_header(line)
                    if self.parse is not from_json:
                        continue
                self._add(self.parse(line))
            except ValueError as error:
                raise errors.InputError(
                    "a log of fnn.log.jsonl or fnn.log.csv",
                    f"line {self.lines} of {self.path}, which is not a row: {error}",
                    "remove that line, or pass another file",
                ) from error

    def _add(self, row: dict[str, Any]) -> None:
        columns = self.columns
        for name, value in row.items():
            if name not in columns:
                columns[name] = [None] * self.count
            columns[name].append(value)
        self.count += 1
        if len(row) < len(columns):
            for values in columns.values():
                if len(values) < self.count:
                    values.append(None)


def _of_header(line: bytes) -> Callable[[bytes], dict[str, Any]]:
    """What reads the rows of a csv file with this header."""
    names = cells(line)
    if tuple(names[:3]) != RESERVED or len(set(names)) < len(names):
        raise ValueError(f"no header of a log, which begins with {','.join(RESERVED)}")

    def parse(line: bytes) -> dict[str, Any]:
        row = cells(line)
        if len(row) != len(names):
            raise ValueError(f"{len(row)} cells under {len(names)} names")
        return {name: from_cell(cell) for name, cell in zip(names, row, strict=True)}

    return parse


def cells(line: bytes) -> list[str]:
    """The cells of a line of a csv file."""
    text = line.decode().removesuffix("\r")
    if '"' not in text:
        return text.split(",")
    found, at, more = [], 0, True
    while more:  # Python's csv module refuses cells of more than 131,072 characters
        match = CELL.match(text, at)
        if match is None:
            raise ValueError("quotation marks that do not match")
        quoted, plain, comma = match.groups()
        found.append(plain if quoted is None else quoted.replace('""', '"'))
        at, more = match.end(), comma == ","
    return found
