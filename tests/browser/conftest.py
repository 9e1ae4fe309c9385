"""One headless Chromium for all tests here."""

from collections.abc import Iterator

import pytest

from tests.fakes.browser import Browser, chromium_browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser" in item.path.as_posix():
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Skipped where there is none, but a failure in CI."""
    with chromium_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser
