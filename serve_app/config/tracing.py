"""Whether traces are wanted, by OpenTelemetry's own variables."""

from collections.abc import Mapping


def traces_endpoint(environ: Mapping[str, str]) -> str | None:
    """Where spans go: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_EXPORTER_OTLP_ENDPOINT`.

    None: nowhere, because neither is set, or `OTEL_SDK_DISABLED`, or `OTEL_TRACES_EXPORTER` is
    another than `otlp`.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    names = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    return next((environ[name] for name in names if environ.get(name)), None)
