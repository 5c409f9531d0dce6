"""A headless Chromium for tests of pages: the system's own, by playwright; tests skip where either is missing."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser) -> Callable:
    """`with open_page(path, **context) as page`: a page of a file that must say nothing and ask for no address.

    `context` is playwright's, such as `viewport` and `color_scheme`.
    """

    @contextmanager
    def opened(path: Path, **context: Any) -> Iterator[Any]:
        with _watched(browser, path.as_uri(), **context) as (page, said, asked):
            yield page
        assert said == []
        assert [url for url in asked if url.partition("#")[0] != path.as_uri()] == []

    return opened


@pytest.fixture(scope="module")
def open_served_page(browser) -> Callable:
    """`with open_served_page(address, **context) as page`: one that must report no error, and ask its server alone.

    The address ends in a slash.
    """

    @contextmanager
    def opened(address: str, **context: Any) -> Iterator[Any]:
        with _watched(browser, address, **context) as (page, said, asked):
            yield page
        assert [line for line in said if line.startswith("error")] == []
        assert [url for url in asked if not url.startswith((address, f"blob:{address}"))] == []

    return opened


@contextmanager
def _watched(browser, url: str, **context: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A page, what it says on the console, and the addresses that it asks for, but for those that hold the data."""
    said: list[str] = []
    asked: list[str] = []
    made = browser.new_context(**context)
    page = made.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
    page.goto(url)
    try:
        yield page, said, asked
    finally:
        made.close()
