"""The load: clients that stream one answer after the other over connections that they keep.

Run as a process of its own, so that its work is not in anybody's figures:
`python -m loadtests.relay_bench.client HOST PORT PATH MODEL CLIENTS REQUESTS TOKENS`
prints one JSON object.
"""

import asyncio
import json
import sys
import time


async def one_client(
    host: str, port: int, request: bytes, n_requests: int, ttfts_s: list[float], e2es_s: list[float]
) -> int:
    """Send `n_requests` in turn; returns the number of SSE events with content."""
    events = 0
    reader, writer = await asyncio.open_connection(host, port)
    for _ in range(n_requests):
        start = time.perf_counter()
        writer.write(request)
        first = 0.0
        seen = b""
        while not seen.endswith(b"0\r\n\r\n"):
            data = await reader.read(65536)
            if not data:
                raise ConnectionError(f"closed after {seen[-200:]!r}")
            seen += data
            if not first and b'"content":" ' in seen:
                first = time.perf_counter() - start
        if not seen.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(seen[:400].decode())
        events += seen.count(b'"content":" ')
        ttfts_s.append(first)
        e2es_s.append(time.perf_counter() - start)
    writer.close()
    return events


async def main(argv: list[str]) -> None:
    """Run all clients at once and print what they saw."""
    host, port, path, model = argv[0], int(argv[1]), argv[2], argv[3]
    n_clients, n_requests, n_tokens = (int(word) for word in argv[4:7])
    token = argv[7] if len(argv) > 7 else "-"
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "max_tokens": n_tokens,
        }
    ).encode()
    request = (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"x-quantile-internal: {token}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
    ttfts_s: list[float] = []
    e2es_s: list[float] = []
    clients = [
        one_client(host, port, request, n_requests, ttfts_s, e2es_s) for _ in range(n_clients)
    ]
    events = sum(await asyncio.gather(*clients))
    print(json.dumps({"events": events, "ttfts_s": ttfts_s, "e2es_s": e2es_s}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
