"""Whether traces are wanted, where they go and how, by OpenTelemetry's own variables."""

from collections.abc import Mapping

TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
GRPC = "grpc"
_TRACES_ENDPOINT, _ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
_HTTP_PATH = "/v1/traces"


def traces_endpoint(environ: Mapping[str, str]) -> str | None:
    """Where spans go: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_EXPORTER_OTLP_ENDPOINT`.

    None: nowhere, because neither is set, or `OTEL_SDK_DISABLED`, or `OTEL_TRACES_EXPORTER` is
    another than `otlp`.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    return environ.get(_TRACES_ENDPOINT) or environ.get(_ENDPOINT) or None


def traces_protocol(environ: Mapping[str, str]) -> str:
    """`grpc`, unless `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL` or `OTEL_EXPORTER_OTLP_PROTOCOL` says
    another."""
    return environ.get(TRACES_PROTOCOL) or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or GRPC


def traces_url(environ: Mapping[str, str]) -> str | None:
    """The endpoint for an exporter that takes it as it is, as vLLM's does; None as above.

    Over HTTP the endpoint of all signals is a base, to which OpenTelemetry's exporters add
    `/v1/traces` when they read it from the environment by themselves, and only then.
    """
    endpoint = traces_endpoint(environ)
    is_base = not environ.get(_TRACES_ENDPOINT) and traces_protocol(environ) != GRPC
    if endpoint is None or not is_base:
        return endpoint
    return endpoint.rstrip("/") + _HTTP_PATH
