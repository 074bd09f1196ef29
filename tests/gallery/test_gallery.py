"""The page of all examples, and what all of them have in common."""

import html.parser
import sys

import pytest

from tests.gallery.support import EXAMPLES, example, run

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_example_has_help_and_opens_with_its_command(name, monkeypatch, capsys):
    module = example(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    first = module.__doc__.splitlines()[0]
    shown = " ".join(capsys.readouterr().out.split())
    assert f"usage: {name}.py" in shown and first in shown and "--out" in shown
    assert f"\n    python examples/{name}.py" in module.__doc__


class Page(html.parser.HTMLParser):
    """What a browser would find: sources of pictures, targets, and tags left open."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.ids, self.open, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        for found, name in ((self.images, "src"), (self.links, "href"), (self.ids, "id")):
            if name in attrs:
                found.append(attrs[name])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_what_examples_print_and_draw(tmp_path, monkeypatch, capsys):
    gallery = example("gallery")
    scripts = tmp_path / "examples"
    scripts.mkdir()
    (scripts / "good.py").write_text('''"""Draws & prints.\n\n    python examples/good.py\n"""
import pathlib, sys
print("1 < 2")
pathlib.Path(sys.argv[2], "good.png").write_bytes(b"")
''')
    (scripts / "bad.py").write_text('"""Fails."""\nraise ValueError("a reason")\n')
    (scripts / "dead.py").write_text('"""Says nothing."""\nraise SystemExit(3)\n')
    monkeypatch.setattr(gallery, "HERE", scripts)
    monkeypatch.setattr(gallery, "NAMES", ["bad", "dead", "good"])
    with pytest.raises(SystemExit, match="failed: bad, dead"):
        run(gallery, "", tmp_path / "out", monkeypatch, capsys)
    page = Page((tmp_path / "out" / "gallery.html").read_text())
    assert not page.open[1:] and page.links == ["#bad", "#dead", "#good"]
    assert page.ids == ["bad", "dead", "good"]
    assert page.images == ["good/good.png"]
    assert "Draws & prints." in page.text and "1 < 2" in page.text and "a reason" in page.text
    assert "ended with code 3" in page.text
    run(gallery, "good", tmp_path / "out", monkeypatch, capsys)  # keeps the other's section
    assert Page((tmp_path / "out" / "gallery.html").read_text()).ids == ["bad", "dead", "good"]


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("autoencoder", "--seeds 1", "at least two seeds"),
        ("lstm_sequences", "--steps 5", "at least 20"),
        ("monitoring", "--batches 5", "at least 10"),
        ("optimizers", "--only adam,eve", "no eve among sgd, momentum"),
        ("sweep_learning_rate", "--strategy fast", "invalid choice"),
    ],
)
def test_options_that_cannot_be_are_named(name, flags, words, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(example(name), flags, tmp_path, monkeypatch, capsys)
    assert ended.value.code == 2 and words in capsys.readouterr().err
