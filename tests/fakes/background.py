"""A server of the standard library in a thread of its own, for as long as a `with` lasts."""

import threading
from socketserver import BaseServer
from typing import Self


class InBackground:
    """`with ... as server`: it answers at `server.url`."""

    def __init__(self, server: BaseServer) -> None:
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self._thread = threading.Thread(target=server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
