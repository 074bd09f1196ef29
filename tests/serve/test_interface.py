import pytest

from fnn.core.errors import DtypeError, InputError, OptionError, ShapeError
from fnn.serve.interface import interface

from .support import said


def of(shape=("batch", 3), max_batch=4, sizes=None, **more):
    return interface(said(shape, **more)["programs"]["apply"], max_batch, sizes)


def test_all_sizes_are_compiled():
    shapes = [
        x.shape for (x,) in of(("batch", "time", 2), max_batch=2, sizes={"time": (3, 5)}).zeros()
    ]
    assert shapes == [(1, 3, 2), (1, 5, 2), (2, 3, 2), (2, 5, 2)]
    assert [x.shape for (x,) in of(max_batch=3).zeros()] == [(1, 3), (2, 3), (3, 3)]


def test_a_fixed_number_of_examples_is_the_only_size():
    fixed = of((5, 3), outputs=[("y", (5, 2))])
    assert fixed.rows == (5,)


def test_the_largest_request_is_as_large_as_a_batch_in_json():
    assert of(max_batch=8).most_bytes() == 32 * 8 * 3 + 4096


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"shape": ()}, ShapeError, "examples along axis 0"),
        ({"outputs": [("y", (2,))]}, ShapeError, "outputs with an axis batch"),
        ({"shape": ("batch", "time")}, OptionError, "sizes of time, got none"),
        ({"sizes": {"time": (2,)}}, OptionError, "sizes of none, got time"),
        ({"sizes": {"time": (0,)}}, OptionError, "time to be an int of at least 1"),
        ({"max_batch": 0}, OptionError, "max_batch"),
        ({"dtype": "complex64"}, DtypeError, "real numbers"),
        ({"dtype": "int4"}, DtypeError, "real numbers"),
        ({"outputs": [("y/a", ("batch",)), ("y/b", ("batch",))]}, InputError, "no trees"),
    ],
)
def test_what_cannot_be_served_is_an_error(options, error, reason):
    with pytest.raises(error, match=reason):
        of(**options)
