"""Where the load goes, and what else is watched while it runs."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from loadtests.campaign.strict import HttpUrl, Positive, Strict


class Target(Strict):
    """Where the load goes. Each request pins one variant as `<model>@<variant>`."""

    base_url: HttpUrl = "http://127.0.0.1:8000"
    """Scheme, host and port, without `/v1`."""
    model: str = Field(min_length=1)
    """Alias of the model, without a pin."""
    variants: Literal["all"] | tuple[str, ...] = "all"
    """Variant names; `all` takes every `<model>@<variant>` that `GET /v1/models` lists."""
    baseline: str | None = None
    """The variant that the others are compared with; null: the first one."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null sends none."""
    ready_timeout_s: Positive = 300.0
    """How long to wait until all replicas of all variants are ready."""

    @field_validator("base_url")
    @classmethod
    def _is_no_api(cls, value: str) -> str:
        if urlsplit(value).path.rstrip("/").endswith("/v1"):
            raise ValueError(f"leave out /v1, have {value!r}")
        return value.rstrip("/")

    @field_validator("variants")
    @classmethod
    def _are_distinct(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, tuple) and (not value or len(set(value)) != len(value)):
            raise ValueError(f"need one or more distinct names, have {list(value)}")
        return value


class Metrics(Strict):
    """Prometheus endpoints that are read while the load runs: KV use, queues, batch sizes."""

    urls: tuple[HttpUrl, ...] = ()
    """Pages in Prometheus' text format."""
    file_sd: Path | None = None
    """A Prometheus service discovery file; Ray writes `prom_metrics_service_discovery.json`,
    under /tmp/ray: that one is left out where the target is another machine."""
    interval_s: Positive = 10.0
    """Ray renews its pages every 10 s, and a read costs its agent about 90 ms of CPU."""
    series: tuple[str, ...] = (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "ray_quantile_engine_running_requests",
        "ray_quantile_engine_waiting_requests",
        "ray_quantile_engine_kv_use_ratio",
        "ray_serve_num_ongoing_http_requests",
        "ray_serve_replica_processing_queries",
    )
    """Names of the series that are kept; a name that ends in `*` keeps all that begin so."""
