"""Pages opened in headless Chromium, watched for errors and for anything fetched from elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Return the path of an installed Chromium: the one that CHROMIUM names, or the first on the PATH."""
    return next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *NAMES))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """Start Chromium, and end it."""
    with sync_playwright() as driver:
        # Containers have no user namespaces and a small /dev/shm.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=find_chromium(), args=flags)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A tab without network, which remembers what went wrong in it.

    Attributes
    ----------
    page : playwright.sync_api.Page
        To click, type and look.
    complaints : list of str
        Console errors and warnings, uncaught exceptions, dialogs, and requests for anything but local files.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.context.set_offline(True)
        page.set_default_timeout(120_000)  # a loaded machine takes its time
        page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        page.on("console", lambda said: said.type in {"error", "warning"} and self.complaints.append(said.text))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:", "about:")):
            self.complaints.append(f"request: {url}")

    def open(self, path: Path, fragment: str = "") -> Page:
        """Open a local file, at a fragment if one is given, and return its page."""
        # The same file with another fragment would only be scrolled to.
        self.page.goto("about:blank")
        self.page.goto(path.resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        return self.page
