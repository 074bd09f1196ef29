"""What does not fit is told without a compiler, and a compiler that is missing by its extra."""

import pytest

from fnn.sharding import dry_run
from tests.gallery.support import example, run


def test_dryrun_refuses_what_does_not_fit(tmp_path, monkeypatch, capsys):
    dry = example("dryrun")
    monkeypatch.setattr(dry, "PLACEMENTS", {"data-parallel": {}})
    out = run(dry, "--sizes 70B --on h100", tmp_path, monkeypatch, capsys)
    (row,) = [line.split() for line in out.splitlines() if line.startswith(" 70B")]
    assert row[:6] == ["70B", "512", "x", "h100", "data-parallel", "no"]
    assert float(row[6]) * 2**30 > 12 * 68e9  # params and two moments, in float32
    (report,) = tmp_path.iterdir()
    assert "at least 10 devices" in report.read_text()


def test_dryrun_names_the_extra(tmp_path, monkeypatch, capsys):
    dry = example("dryrun")
    monkeypatch.setattr(dry_run, "_PACKAGES", {"tpu": ("no_such_package",)})
    with pytest.raises(SystemExit):
        run(dry, "", tmp_path, monkeypatch, capsys)
    assert "pip install 'fnn[dryrun]'" in capsys.readouterr().err


def test_dryrun_has_networks_of_their_size():
    dry = example("dryrun")
    sizes = {name: dry.params_of(name) for name in dry.SIZES}
    assert 1.2e9 < sizes["1B"] < 1.3e9 and 6.7e9 < sizes["7B"] < 6.8e9
    assert 68.9e9 < sizes["70B"] < 69.1e9  # as in Touvron et al. 2023
