"""One trace across the router's and the variant's processes, received over OTLP gRPC."""

import httpx
import pytest

from serve_app.config.serve_content import serve_content, variant_application
from serve_app.serving.local_serve import LocalServe
from serve_app.serving.ports import own_ports
from tests.fakes.otlp import Collector
from tests.serve_local.conftest import write_config

PORT = 8130
TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector, tmp_path_factory):
    """A router and one fake variant, told by OpenTelemetry's variables where traces go."""
    folder = tmp_path_factory.mktemp("traced")
    variant = variant_application(
        {
            "model": "m",
            "name": "awq",
            "checkpoint": "none",
            "method": "awq",
            "engine": {"kind": "fake", "fake": {"ttft_ms": 5, "itl_ms": 1, "output_tokens": 4}},
        }
    )
    config = write_config(
        folder / "serve.yaml", serve_content(PORT, "m", {"split": {"awq": 10_000}}, [variant])
    )
    environ = own_ports() | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with LocalServe(
        config, log=folder / "serve.log", ready_timeout_s=180, environ=environ
    ) as serve:
        yield serve


def test_the_clients_trace_goes_through_router_and_variant(traced, collector):
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "a secret"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    context = {"traceparent": f"00-{TRACE}-{CLIENT}-01"}
    reply = httpx.post(f"{traced.base_url}/v1/chat/completions", json=body, headers=context)
    assert reply.status_code == 200
    spans = collector.wait_for(
        lambda spans: (
            {s.service for s in spans if s.trace == TRACE}
            == {"quantile-router", "quantile-variant"}
        )
    )
    router, variant = sorted((s for s in spans if s.trace == TRACE), key=lambda span: span.service)
    assert (router.name, router.parent) == ("route m", CLIENT)
    assert (variant.name, variant.parent) == ("variant awq", router.id)
    assert router.attributes["quantile.variant"] == "awq"
    assert router.attributes["quantile.route.reason"] == "weighted"
    assert router.attributes["gen_ai.usage.output_tokens"] == 4
    assert variant.attributes["quantile.method"] == "awq"
    assert "secret" not in repr(spans)
