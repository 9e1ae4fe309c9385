"""The short way to a client: past Serve's and uvicorn's layers, for the middle of a stream.

Between an application in a Serve replica and its client stand three coroutines that do nothing to a
piece of a stream but frame it: Serve's, that of its request ids, uvicorn's. They were a tenth of
what the router costs per token (decision 0023). An answer's head and its end go through them still,
so that Serve and uvicorn know how it began and that it is over.

Where anything else stands there (a middleware of the user's, another server, a version of Ray's
that does it otherwise) there is no short way, and all goes the long one.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serve_app.engines.engine import Send

_PASS_ON = {
    ("ray.serve._private.replica", "Replica._direct_ingress_asgi.<locals>.send_user_message"),
    ("ray.serve._private.http_util", "RequestIdMiddleware.__call__.<locals>.send_with_request_id"),
}
"""Module and name of what hands pieces as they are to the `send` that it closes over."""


def short_way(send: Send) -> Callable[[bytes], bool] | None:
    """What writes a piece of an answer in chunks; None: there is no such way here.

    Ask when the head was sent. A piece must not be empty. False: it was not written and has to go
    by `send`, since the client is slow or gone.
    """
    exchange = _uvicorns_exchange(send)
    if exchange is None or not exchange.chunked_encoding or exchange.scope["method"] == "HEAD":
        return None
    flow, write = exchange.flow, exchange.transport.write

    def write_piece(piece: bytes) -> bool:
        if flow.write_paused or exchange.disconnected:
            return False
        write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    return write_piece


def _uvicorns_exchange(send: Any) -> RequestResponseCycle | None:
    """What `send` ends in, if nothing but `_PASS_ON` comes before."""
    while isinstance(send, FunctionType) and (send.__module__, send.__qualname__) in _PASS_ON:
        names = send.__code__.co_freevars
        if send.__closure__ is None or "send" not in names:
            return None
        send = send.__closure__[names.index("send")].cell_contents
    exchange = send.__self__ if isinstance(send, MethodType) else None
    return exchange if isinstance(exchange, RequestResponseCycle) else None
