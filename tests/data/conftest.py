"""Directories in which data sets lie prepared."""

import shutil

import pytest

import fnn.data


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A data_dir in which both embedded data sets lie prepared and decoded; not to be changed."""
    root = tmp_path_factory.mktemp("data")
    for name in ("mnist_5k", "digits"):
        fnn.data.load(name, data_dir=root)
    return root


@pytest.fixture
def digits_copy(root, tmp_path):
    """A data_dir with digits prepared and decoded; may be changed."""
    shutil.copytree(root / "digits", tmp_path / "digits")
    return tmp_path
