"""Unit tests reach no network and start no Ray: the wrong test fails here, and says where to go."""

import importlib.machinery
import socket
import sys
from types import ModuleType
from typing import NoReturn

import pytest


def _refuse_network(*args: object, **kwargs: object) -> NoReturn:
    pytest.fail(
        "a unit test used a socket: test the logic without one, or move the test to "
        "tests/contract (loopback sockets) or tests/serve_local (Ray Serve)"
    )


def _refuse_ray(*args: object, **kwargs: object) -> NoReturn:
    pytest.fail("a unit test called ray.init: move the test to tests/serve_local")


class _RayWithoutInit:
    """Finds `ray` as usual, and takes `init` away from it once it is loaded."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        spec = importlib.machinery.PathFinder.find_spec(name) if name == "ray" else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_disarm(module: ModuleType) -> None:
            load(module)
            self._patch.setattr(module, "init", _refuse_ray)

        spec.loader.exec_module = load_and_disarm  # type: ignore[method-assign]
        return spec


@pytest.fixture(autouse=True)
def no_network_and_no_ray():
    # asyncio wakes its loop through a socketpair: that neither binds nor connects.
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex", "bind", "sendto"):
            patch.setattr(socket.socket, method, _refuse_network)
        patch.setattr(socket, "getaddrinfo", _refuse_network)
        if "ray" in sys.modules:
            patch.setattr(sys.modules["ray"], "init", _refuse_ray)
        else:
            patch.setattr(sys, "meta_path", [_RayWithoutInit(patch), *sys.meta_path])
        yield
