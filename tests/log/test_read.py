"""What is no log is refused, and names its line."""

import numpy as np
import pytest

import fnn
from fnn import errors

GOOD = '{"step":1,"epoch":0,"time":1.0,"train/loss":0.5}\n'
HEADER = "step,epoch,time,train/loss\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD + "nonsense\n", 2),
        (GOOD + '["a"]\n', 2),
        (GOOD + '{"step":2,"epo\n' + GOOD, 2),
        ("some text\n", 1),
        ("a,b,c\n1,2,3\n", 1),
        (HEADER + "1,0,1.0,0.5\n2,0,1.0\n", 3),
        (HEADER + "1,0,1.0,loss\n", 2),
        (HEADER + '1,0,1.0,"[1\n', 2),
        ("step,epoch,time,a,a\n1,0,1.0,2,3\n", 1),
        (b"step,epoch,time,a\n1,0,1.0,\xff\n", 2),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, text, line):
    path = tmp_path / "run"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(errors.InputError, match=f"read: .*line {line} of .*not a row"):
        fnn.log.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(errors.InputError, match="run.jsonl: No such file"):
        fnn.log.read(tmp_path / "run.jsonl")


@pytest.mark.parametrize("text", ["", GOOD[:20], HEADER, HEADER[:9]])
def test_a_file_without_rows_has_empty_columns(tmp_path, text):
    path = tmp_path / "run"
    path.write_text(text)
    columns = fnn.log.read(path)
    assert list(columns) == ["step", "epoch", "time"]
    assert all(len(column) == 0 for column in columns.values())


def test_csv_as_a_spreadsheet_saves_it(tmp_path):
    path = tmp_path / "run.csv"
    path.write_bytes(b'step,epoch,time,"a ""b"", c"\r\n1,0,1.0,"2.5"\r\n2,0,2.0,\r\n')
    columns = fnn.log.read(path)
    np.testing.assert_array_equal(columns['a "b", c'], [2.5, np.nan])
    np.testing.assert_array_equal(columns["step"], [1, 2])


def test_a_cell_may_be_longer_than_the_csv_module_allows(tmp_path):
    path = tmp_path / "run.csv"
    long = np.arange(100_000)
    path.write_text(HEADER + f'1,0,1.0,"{long.tolist()}"\n')
    np.testing.assert_array_equal(fnn.log.read(path)["train/loss"], [long])
