"""Paths against a walk of the tree, and back."""

from typing import NamedTuple

import jax
import pytest
from hypothesis import given

from fnn import errors, tree
from tests.tree.support import DICTS, walk


@given(DICTS)
def test_paths_are_those_of_a_walk_in_the_order_of_leaves(nested):
    assert list(tree.to_paths(nested).items()) == walk(nested)
    assert tree.paths(nested) == tuple(path for path, _ in walk(nested))
    assert list(tree.to_paths(nested).values()) == jax.tree.leaves(nested)


@given(DICTS)
def test_from_paths_undoes_to_paths(nested):
    assert tree.from_paths(tree.to_paths(nested)) == nested


def test_paths_of_other_containers():
    class Point(NamedTuple):
        x: int
        y: list

    assert tree.paths({"a": (1, [2, 3])}) == (
        "a/0",
        "a/1/0",
        "a/1/1",
    )
    assert tree.paths(Point(4, [5])) == ("x", "y/0")
    assert tree.to_paths(7) == {"": 7} and tree.from_paths({"": 7}) == 7
    assert tree.to_paths({}) == {} and tree.from_paths({}) == {}


@pytest.mark.parametrize(
    "flat",
    [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}, {"": 1, "a": 2}, {"a//b": 1}, {"a/": 1}, {"/a": 1}],
)
def test_from_paths_refuses_paths_through_leaves(flat):
    with pytest.raises(errors.ParamsError, match="^from_paths: expected"):
        tree.from_paths(flat)


def test_a_leaf_that_is_a_dict_is_not_entered():
    with pytest.raises(errors.ParamsError):
        tree.from_paths({"a": {"c": 1}, "a/b": 2})


def test_two_leaves_at_one_path():
    with pytest.raises(errors.ParamsError, match="two at a/b"):
        tree.to_paths({"a/b": 1, "a": {"b": 2}})
