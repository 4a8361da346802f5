"""A headless Chromium for tests of pages, where one is installed; every request it makes is written down."""

import contextlib
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


def find_chromium():
    """$CHROMIUM, else the first of the usual names on the path; None where there is none."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium():
    """A Playwright browser. Skips the test where there is no Chromium, or no Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed: put one on the path, or its path into $CHROMIUM")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


class Watched:
    """A page; what it asked for, said and went wrong with."""

    def __init__(self, browser, **options):
        self.page = browser.new_page(**options)
        self.requests, self.dialogs, self.errors = [], [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
