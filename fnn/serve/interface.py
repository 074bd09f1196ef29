"""What a network takes and gives, as its artifact's manifest says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fnn.core import checks, errors
from fnn.serve.batcher import powers


class Form(NamedTuple):
    """An array of an interface; sizes of its shape that may vary are names."""

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype.name} [{', '.join(map(str, self.shape))}]"


class Interface(NamedTuple):
    """The inputs and outputs of a program, and the sizes that it is compiled for.

    - `rows`: how many examples one batch may have, rising.
    - `sizes`: by name, what sizes other than the number of examples may be.
    """

    inputs: tuple[Form, ...]
    outputs: tuple[Form, ...]
    rows: tuple[int, ...]
    axes: tuple[int, ...]
    sizes: dict[str, tuple[int, ...]]

    @property
    def npy(self) -> bool:
        """Whether one array is all that goes in, and one all that comes out."""
        return len(self.inputs) == len(self.outputs) == 1

    def zeros(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Inputs of each shape that it is compiled for, the smallest first."""
        names = list(self.sizes)
        for rows in self.rows:
            for chosen in itertools.product(*self.sizes.values()):
                at = dict(zip(names, chosen, strict=True))
                yield tuple(
                    np.zeros((rows, *(at.get(d, d) for d in form.shape[1:])), form.dtype)  # type: ignore
                    for form in self.inputs
                )

    def most_bytes(self) -> int:
        """What a request of as many rows as fit takes as JSON, at 32 bytes a number."""
        *_, largest = self.zeros()
        return 32 * sum(x.size for x in largest) + 4096


def interface(
    program: Mapping[str, Any], max_batch: int, sizes: Mapping[str, Sequence[int]] | None = None
) -> Interface:
    """The interface of a program of the manifest, with batches of up to `max_batch` examples."""
    inputs, outputs = (
        tuple(Form(f["name"], tuple(f["shape"]), jnp.dtype(f["dtype"])) for f in program[which])
        for which in ("inputs", "outputs")
    )
    for form in inputs + outputs:
        if "/" in form.name:
            mend = "export a network that takes arrays, each an input of its own"
            raise errors.InputError("inputs and outputs that are no trees", form.name, mend)
        if form.dtype.kind not in "biuf" and not jnp.issubdtype(form.dtype, jnp.floating):
            raise errors.DtypeError("real numbers", str(form), "split them, or widen them")
    first = {form.shape[0] if form.shape else None for form in inputs}
    if len(first) != 1 or None in first:
        shapes = ", ".join(map(str, inputs)) or "none"
        mend = 'export it for shapes such as ("batch", 28, 28, 1)'
        raise errors.ShapeError("inputs that have the examples along axis 0", shapes, mend)
    (batch,) = first
    for form in outputs:
        if batch not in form.shape:
            mend = "give out what belongs to an example"
            raise errors.ShapeError(f"outputs with an axis {batch}", str(form), mend)
    free = {d for form in inputs for d in form.shape[1:] if isinstance(d, str)}
    sizes = {name: checks.counts(name, tuple(some)) for name, some in (sizes or {}).items()}
    if free != set(sizes) or batch in free:
        mend = "pass the sizes that it may have, as sizes={'time': (32, 64)}, or export it for one"
        got = errors.names(sorted(sizes))
        raise errors.OptionError(f"sizes of {errors.names(sorted(free))}", got, mend)
    rows = (batch,) if isinstance(batch, int) else powers(max_batch)
    axes = tuple(form.shape.index(batch) for form in outputs)
    return Interface(inputs, outputs, rows, axes, sizes)
