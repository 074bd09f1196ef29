"""The picture of augmentations is drawn, from some of them and small digits."""

import numpy as np

from tests.gallery.support import example, run


def test_augmentations(tmp_path, monkeypatch, capsys):
    gallery = example("augmentations")
    some = {name: gallery.AUGMENTATIONS[name] for name in ("shift(4)", "elastic(40, 4)", "erase()")}
    monkeypatch.setattr(gallery, "AUGMENTATIONS", some)
    out = run(gallery, "--data digits", tmp_path, monkeypatch, capsys)
    assert "5 augmentations of digits, 10 draws of each" in out
    assert (tmp_path / "augmentations.png").stat().st_size > 10_000


def test_captions_name_what_is_mixed():
    caption = example("augmentations").caption
    assert caption(np.array([0.0, 0.25, 0.75])) == "75% 2, 25% 1"
    assert caption(np.array([0.0, 1.0, 0.0])) == "100% 1"
