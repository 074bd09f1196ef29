"""The page in a browser: `make test-serve`."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest

import fnn

from .support import KERNEL, stand_in
from .test_generation import WORDS, likeliest, writing

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="needs fnn[test-serve]"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    # The system's, if there is one; or what `playwright install chromium` has fetched.
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def opened(browser):
    """Opens an address; at the end nothing else was loaded, and nothing was refused or broken."""
    pages, said, loaded = [], [], []

    def opened(address, **options):
        page = browser.new_page(**options)
        pages.append((page, address))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: loaded.append((request.url, address)))
        page.goto(address)
        page.wait_for_selector("#network div")
        return page

    yield opened
    for page, _ in pages:
        page.close()
    refused = [text for text in said if "422" not in text and "400" not in text]
    assert not refused
    assert all(url.startswith((address, "data:")) for url, address in loaded)


def strokes(x):
    """How much ink [B, 8, 8, 1] changes along rows, and along columns."""
    return np.stack([abs(np.diff(x, axis=axis)).sum((1, 2, 3)) for axis in (2, 1)], 1) / 4


def pictures(**more):
    shapes = dict(shape=("batch", 8, 8, 1), outputs=[("y", ("batch", 2))])
    return stand_in(strokes, labels=["upright", "<b>flat</b>"], **shapes, **more)


def draw(page, *points):
    box = page.locator("#draw").bounding_box()
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def told(page, text, where="#told"):
    """Wait until the page says this."""
    page.locator(where, has_text=text).wait_for()


def bars(page):
    """The names and the shares that the page shows."""
    names = page.locator("#bars .name").all_inner_texts()
    values = page.locator("#bars .value").all_inner_texts()
    return dict(zip(names, (float(v.removesuffix(" %")) for v in values), strict=True))


def test_what_is_drawn_is_asked_and_the_answer_shown(opened):
    artifact = pictures(network="conv1 8 x 8\nrelu_1\ndense1 2")
    with fnn.serve.running(artifact, max_batch=1) as address:
        page = opened(address)
        boxes = page.locator("#network div").all_inner_texts()
        assert [box.split("\n")[0] for box in boxes] == ["x", "conv1", "relu_1", "dense1", "y"]
        asked = []
        page.on("request", lambda request: asked.append(request.post_data))
        draw(page, (0.7, 0.2), (0.7, 0.8))
        told(page, "answered")
        page.wait_for_timeout(400)
        x = np.array(json.loads(asked[-1])["x"])
        y = np.exp(strokes(x[None].astype("f4"))[0])
        shown = bars(page)
        assert list(shown) == ["upright", "<b>flat</b>"]
        np.testing.assert_allclose(list(shown.values()), 100 * y / y.sum(), atol=0.06)
        assert shown["upright"] > 60 and page.locator("#bars .best").first.inner_text() == "upright"
        column = x.sum((0, 2))  # the line is moved into the middle
        assert column[3:5].sum() > 0.9 * column.sum() and 0.3 < x.max() <= 1
        page.click("#clear")
        draw(page, (0.2, 0.3), (0.8, 0.3))
        told(page, "flat", "#bars .name.best")
        page.close()  # before the server ends: it may ask once more


def test_a_description_is_drawn_layer_by_layer(opened):
    net = fnn.serial(fnn.conv(8, (3, 3)), jax.nn.relu, fnn.flatten(3), head=fnn.dense(2))
    with fnn.serve.running(stand_in(network=fnn.describe(net)), max_batch=1) as address:
        boxes = opened(address).locator("#network div").all_inner_texts()
    assert [box.split("\n")[0] for box in boxes] == ["x", "conv", "relu", "flatten", "head", "y"]
    assert "3 × 3" in boxes[1] and "features 2" in boxes[4]


def test_anything_else_is_asked_as_json(opened):
    with fnn.serve.running(stand_in(), max_batch=1) as address:
        page = opened(address)
        assert json.loads(page.input_value("#text")) == {"x": [0, 0, 0]}
        page.fill("#text", '{"x": [1, 0, -1]}')
        page.keyboard.press("Control+Enter")
        told(page, "answered")
        np.testing.assert_allclose(list(bars(page).values()), KERNEL[0] - KERNEL[2], rtol=1e-3)
        page.fill("#text", '{"x": [1, 0]}')
        page.click("#send")
        told(page, "got shape [2]", "#told.wrong")


def test_a_text_is_written_as_it_comes(opened):
    with fnn.serve.running(writing()) as address:
        page = opened(address)
        page.fill("#start", "ab c")
        page.evaluate("document.querySelector('#heat').value = 0")
        page.fill("#count", "40")
        page.click("#write")
        told(page, "40 tokens")
        want = "ab c" + "".join(WORDS[i] for i in likeliest([2, 4, 3], 40))
        assert page.locator("#raw").text_content() == want


@pytest.mark.parametrize("make", [pictures, stand_in, writing])
def test_it_fits_a_telephone_in_the_dark(opened, make):
    with fnn.serve.running(make(), max_batch=1) as address:
        size = {"width": 360, "height": 740}
        page = opened(address, viewport=size, color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"


def test_pages_of_other_sites_get_no_answers(opened, browser):
    with fnn.serve.running(stand_in(), max_batch=1) as address:
        page = browser.new_page()
        page.goto("data:text/html,<p>elsewhere</p>")
        ask = """async ([url, kind]) => {
            const how = {method: "POST", body: '{"x": [1, 2, 3]}', headers: {"content-type": kind}};
            try { return await (await fetch(url, how)).text(); } catch { return "refused"; }
        }"""
        for kind in ("application/json", "text/plain"):
            assert page.evaluate(ask, [address + "/predict", kind]) == "refused"
        page.close()
