"""A progress bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class Bar:
    """A tqdm bar, or nothing; it shows the loss now and then, so that it does not wait for it."""

    def __init__(self, total: int | None, shown: bool, unit: str = "step"):
        self.bar = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ImportError(
                    "the progress bar needs tqdm: pip install 'fnn[progress]', "
                    "or pass progress=False"
                ) from None
            self.bar = tqdm(total=total, unit=unit)
        self.shown: dict[str, str] = {}
        self.next = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, row: Callable[[], Mapping[str, Any]], count: int) -> None:
        """`count` steps on; now and then it shows `row()`."""
        if self.bar is None:
            return
        self.advance(count)
        elapsed = self.bar.format_dict["elapsed"]
        if elapsed >= self.next:
            self.next = elapsed + 0.5
            self.note(row())

    def advance(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count)

    def note(self, row: Mapping[str, Any]) -> None:
        if self.bar is not None:
            scalars = {name: value for name, value in row.items() if np.ndim(value) == 0}
            self.shown |= {name: f"{float(value):.3f}" for name, value in scalars.items()}
            self.bar.set_postfix(self.shown, refresh=False)
