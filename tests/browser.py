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
    """`with open_page(path, **context) as page`: a page of a file that must report no error and ask for no address.

    `context` is playwright's, such as `viewport` and `color_scheme`.
    """

    @contextmanager
    def opened(path: Path, **context: Any) -> Iterator[Any]:
        said: list[str] = []
        asked: list[str] = []
        made = browser.new_context(**context)
        page = made.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        try:
            yield page
        finally:
            made.close()
        assert said == []
        elsewhere = [url for url in asked if url.partition("#")[0] != path.as_uri() and not url.startswith("data:")]
        assert elsewhere == []

    return opened
