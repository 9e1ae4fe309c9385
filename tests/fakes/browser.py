"""Headless Chromium with a new, empty profile: the system's own, through its ChromeDriver."""

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""Without these Chromium looks up its maker's hosts at every start, which a test must not."""


@contextmanager
def chromium_browser(profile: Path) -> Iterator["Browser"]:
    """A browser of the test's own; skips the test where there is none, but fails it in CI."""
    chrome, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chrome is None or driver is None:
        reason = "need chromium and chromedriver on PATH: .ci/install-browser"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    browser = Browser(chrome, driver, profile)
    try:
        yield browser
    finally:
        browser.close()


class Browser:
    """The few things that the tests ask of a browser."""

    def __init__(self, chrome: str, driver: str, profile: Path) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        options.binary_location = chrome
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self._driver = Chrome(options=options, service=Service(driver))

    def open(self, page: Path | str, *, width: int = 1280, scheme: str = "light") -> None:
        """Load a file or a URL in a window of `width` CSS pixels; forget what the console said."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._cdp("Emulation.setEmulatedMedia", features=features)
        self.console()
        self._driver.get(page if isinstance(page, str) else page.as_uri())

    def ask(self, expression: str) -> object:
        """The value of a JavaScript expression in the page."""
        return self._driver.execute_script(f"return {expression}")

    def run(self, script: str) -> None:
        """Run statements in the page."""
        self._driver.execute_script(script)

    def console(self) -> list[dict[str, object]]:
        """What went to the console since the last call: errors and failed loads among it."""
        return list(self._driver.get_log("browser"))

    def press(self, key: str) -> None:
        """Press a key, by the name that selenium has for it, where the focus is."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self._driver).send_keys(getattr(Keys, key)).perform()

    def picture(self, name: str) -> None:
        """The whole page as a PNG into the folder that QUANTILE_PICTURES names; nothing without."""
        folder = os.environ.get("QUANTILE_PICTURES")
        if folder:
            shot = {"captureBeyondViewport": True, "format": "png"}
            found = self._driver.execute_cdp_cmd("Page.captureScreenshot", shot)
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self._driver.quit()

    def _cdp(self, method: str, **arguments: object) -> None:
        self._driver.execute_cdp_cmd(method, arguments)
