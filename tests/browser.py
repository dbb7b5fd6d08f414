"""A browser without a window, for tests of pages: Chromium or Chrome with its driver, and
selenium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1000,800",
)
LEFT, RIGHT, ENTER = "\ue012", "\ue014", "\ue007"
"""Keys, as selenium names them."""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A selenium driver; the test is skipped where there is no browser or no selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROME is None or DRIVER is None:
        pytest.skip("neither Chromium nor Chrome with chromedriver is in PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_until(browser: Any, condition: Callable[[], object]) -> None:
    """Waits until the condition holds; fails after 60 s."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: condition())


def choose(element: Any, index: int) -> None:
    """Chooses an option of a ``select``."""
    from selenium.webdriver.support.select import Select

    Select(element).select_by_index(index)


def drag(browser: Any, element: Any, pixels: int) -> None:
    """Presses the pointer in the middle of an element, and releases it so many pixels to the
    right."""
    from selenium.webdriver import ActionChains

    actions = ActionChains(browser).move_to_element(element).click_and_hold()
    actions.move_by_offset(pixels, 0).release().perform()


def emulate(browser: Any, *, width: int, dark: bool) -> None:
    """Makes the browser show pages as a phone of this width in CSS pixels does."""
    size = {"width": width, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def is_dark(browser: Any) -> bool:
    """Whether the page's ground is dark."""
    ground = browser.find_element("tag name", "body").value_of_css_property("background-color")
    parts = ground.removeprefix("rgba(").removeprefix("rgb(").rstrip(")").split(",")[:3]
    return sum(map(int, parts)) / 3 < 60
