"""A Serve application whose every answer is a stream that says whether it goes the short way."""

from typing import Any

from ray import serve

from serve_app.serving.http import run_lifespan
from serve_app.serving.short_way import short_way


class _Probe:
    async def __serve_build_asgi_app__(self) -> Any:
        return _answer


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await run_lifespan(receive, send)
        return
    head = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    write = short_way(send)
    if write is None or not write(b"data: short\n\n"):
        await send({"type": "http.response.body", "body": b"data: long\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


app = serve.deployment(name="Probe", ray_actor_options={"num_cpus": 0})(
    serve.ingress()(_Probe)
).bind()
