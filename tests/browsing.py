"""A browser without a screen, and what a visitor of the page sees and does in it."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from werkzeug.serving import WSGIRequestHandler, make_server

from examples.cluster import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask

__all__ = ["Page", "browser_fixture", "served"]

_OPTIONS = ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage")
_PATIENCE = 60.0
"""Seconds that a slow machine may need for anything that is waited for."""


@pytest.fixture(scope="module", name="browser")
def browser_fixture() -> Iterator[Chrome]:
    """Give a browser without a screen."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium is not installed")
    options = ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for option in _OPTIONS:
        options.add_argument(option)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    found = Chrome(options, ChromeService(driver))
    yield found
    found.quit()


class Page:
    """What a visitor sees and does."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return self.browser.find_element(By.CSS_SELECTOR, selector).text

    def button(self, label: str) -> Any:
        """Return a button by its label."""
        return self.browser.find_element(By.CSS_SELECTOR, f'[aria-label="{label}"]')

    def focused(self) -> str | None:
        """Return the label of what has the focus."""
        return self.browser.switch_to.active_element.get_attribute("aria-label")

    def wait(self, selector: str, part: str) -> None:
        """Wait until an element has a text."""

        def shows() -> bool:
            try:
                return part in self.text(selector)
            except WebDriverException:  # it is replaced at this moment
                return False

        wait_until(shows, f"{part!r} on the page", _PATIENCE)


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Say nothing of each request."""


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an application by threads; give its address."""
    server = make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=_QuietHandler
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
