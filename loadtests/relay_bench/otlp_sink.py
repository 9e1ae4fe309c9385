"""Where the benchmark's spans go: an OTLP collector over gRPC that counts them.

A process of its own, so that its work is in nobody's figures:
`python -m loadtests.relay_bench.otlp_sink PORT` writes `{"service": ..., "spans": ...}` for each
batch that it gets.
"""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loadtests.relay_bench.nouns import TRACED, Sample
from loadtests.relay_bench.processes import running, wait_for_port
from serve_app.domain.errors import InvalidRunError
from serve_app.serving.ports import free_port

_LOG = "otlp.log"


@contextlib.contextmanager
def otlp_sink(folder: Path) -> Iterator[int]:
    """Run it; yields its port."""
    port, log = free_port(), folder / _LOG
    command = [sys.executable, "-m", "loadtests.relay_bench.otlp_sink", str(port)]
    with running(command, log) as process:
        wait_for_port(process, port, log)
        yield port


def spans_in(folder: Path) -> Counter[str]:
    """Spans that came, by service."""
    found: Counter[str] = Counter()
    for line in (folder / _LOG).read_text("utf-8", "replace").splitlines():
        if line.startswith("{"):
            told = json.loads(line)
            found[told["service"]] += told["spans"]
    return found


def require_spans(folder: Path, samples: Sequence[Sample]) -> None:
    """Raise InvalidRunError unless there is a span of each counted request that was traced.

    A router that could not send its spans would cost less than one that does.
    """
    streams = sum(sample.streams for sample in samples if sample.way == TRACED)
    spans = spans_in(folder)[TRACED]
    if spans < streams:
        raise InvalidRunError(
            f"{spans} spans of {streams} traced requests arrived: the figures are not of traces "
            f"that were sent; see {folder / _LOG}"
        )


def main(argv: list[str]) -> None:
    """Serve until the process is ended."""
    import grpc  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

    class Sink(service.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            for each in request.resource_spans:
                names = [
                    pair.value.string_value
                    for pair in each.resource.attributes
                    if pair.key == "service.name"
                ]
                n_spans = sum(len(scope.spans) for scope in each.scope_spans)
                told = json.dumps({"service": "".join(names), "spans": n_spans})
                sys.stdout.write(f"{told}\n")
            sys.stdout.flush()
            return messages.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service.add_TraceServiceServicer_to_server(Sink(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{argv[0]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1:])
