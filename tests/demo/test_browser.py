"""The page of `quantsr demo` in a browser without a window."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quantsr.data.resize import imresize_uint8
from quantsr.demo.networks import Networks
from quantsr.demo.server import DemoServer
from tests.browser import LEFT, choose, drag, emulate, is_dark, wait_until

pytestmark = pytest.mark.integration

# Puts a file into the page as a mouse that carries it would.
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], arguments[1]));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
"""
# What an <img> shows, as the numbers of a canvas.
PIXELS = """
const image = document.getElementById(arguments[0]);
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
const context = canvas.getContext("2d");
context.drawImage(image, 0, 0);
return [canvas.height, canvas.width, [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
"""


class Page:
    """The page, and what a user sees and does there."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.options("depth"))

    def wait(self, condition: Any) -> None:
        wait_until(self.browser, condition)

    def find(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def options(self, name: str) -> list[str]:
        return [option.text for option in self.find(name).find_elements("tag name", "option")]

    def choose(self, name: str, index: int) -> None:
        choose(self.find(name), index)
        self.settled()

    def settled(self) -> None:
        body = self.browser.find_element("tag name", "body")
        self.wait(lambda: "busy" not in body.get_attribute("class").split())

    def drop(self, data: bytes, name: str) -> None:
        self.browser.execute_script(DROP, base64.b64encode(data).decode(), name)
        self.settled()

    def pixels(self, name: str) -> np.ndarray:
        height, width, values = self.browser.execute_script(PIXELS, name)
        return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]

    def says(self) -> str:
        return str(self.find("says").text)

    def errors(self) -> list[Any]:
        """What the console shows since it was last asked."""
        return list(self.browser.get_log("browser"))


@pytest.fixture
def page(browser: Any, server: DemoServer) -> Page:
    return Page(browser, server.address)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


SMALL = np.random.default_rng(5).integers(0, 256, (20, 30, 3), np.uint8)


def test_a_dropped_picture_is_shown_beside_bicubic(page: Page, networks: Networks) -> None:
    assert page.options("network") == ["four (×4)", "two (×2)"]
    assert page.options("depth") == ["3 (best)", "1 (fastest)"]
    assert not page.find("result").is_displayed()
    page.drop(png(SMALL), "small.png")
    for choice in (None, ("depth", 1), ("network", 1)):
        if choice is not None:
            page.choose(*choice)
        name, depth, scale = {
            None: ("four", 3, 4),
            ("depth", 1): ("four", 1, 4),
            ("network", 1): ("two", 2, 2),
        }[choice]
        expected = np.asarray(Image.open(io.BytesIO(networks.enlarge(png(SMALL), name, depth).png)))
        np.testing.assert_array_equal(page.pixels("after"), expected)
        np.testing.assert_array_equal(page.pixels("before"), imresize_uint8(SMALL, scale))
        assert f"30×20 to {30 * scale}×{20 * scale} in " in page.says()
        assert " ms (engine " in page.says()
        assert page.find("by").text.startswith(f"{name}, depth {depth}")
        assert page.find("save").get_attribute("download") == f"small_x{scale}.png"
    assert page.errors() == []


def test_the_slider_moves_by_keyboard_and_pointer(page: Page, browser: Any) -> None:
    page.drop(png(SMALL), "small.png")
    share, before = page.find("share"), page.find("before")

    def covered() -> str:
        return str(before.value_of_css_property("clip-path"))

    assert covered() == "inset(0px 50% 0px 0px)"
    share.send_keys(LEFT * 10)
    assert (share.get_attribute("value"), covered()) == ("40", "inset(0px 60% 0px 0px)")
    assert share.get_attribute("aria-valuetext") == "40 % bicubic, 60 % network"
    pair = page.find("pair")
    drag(browser, pair, pair.rect["width"] // 4)
    assert abs(int(share.get_attribute("value")) - 75) <= 1
    assert page.errors() == []


def test_a_bad_file_is_named_and_the_next_picture_works(page: Page) -> None:
    page.drop(b"no picture at all", "notes.txt")
    assert page.says().startswith("The picture: is not a picture this program can read")
    assert not page.find("result").is_displayed()
    assert [entry["source"] for entry in page.errors()] == ["network"]  # the browser's line on status 422
    page.drop(png(SMALL), "small.png")
    assert page.find("result").is_displayed()
    assert page.errors() == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(page: Page, browser: Any, dark: bool) -> None:
    emulate(browser, width=360, dark=dark)
    page.drop(png(np.repeat(np.repeat(SMALL, 8, 0), 8, 1)), "a name that is long enough to be broken.png")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    assert is_dark(browser) == dark
