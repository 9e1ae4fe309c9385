"""The sources of evidence of a rollout file."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serve_app.config.strict import StrictModel

HttpUrl = Annotated[str, Field(pattern=r"^https?://\S+$")]


class ProbesConfig(StrictModel):
    """Our own requests: each goes to both variants by their pins, one after the other.

    Their order is drawn. They tell latencies pair by pair, and whether answers agree. They are
    load, and they are not the users' own requests.
    """

    kind: Literal["probes"]
    base_url: Annotated[str, Field(pattern=r"^https?://\S+/v1$")] = "http://127.0.0.1:8000/v1"
    prompts: Path | None = None
    """JSONL, a prompt a line: `{"messages": [...], "expect": "Paris"}`, `expect` (what the answer
    must contain, in normal form) if known. None: questions to the reference model."""
    rate_per_s: PositiveFloat = 2.0
    """Pairs a second."""
    concurrency: PositiveInt = 4
    """Pairs under way at once; where answers are slower than the rate, fewer are asked."""
    max_tokens: PositiveInt = 32
    timeout_s: PositiveFloat = 60.0
    floor: bool = False
    """Whether the baseline is asked a second time, to know how often it differs from itself."""
    api_key_env: str | None = None
    """The environment variable with the API key; None: no key."""
    look_s: PositiveFloat = 5.0
    """How often the evidence is looked at."""


class MetricsConfig(StrictModel):
    """The router's own counters and histograms, on the Prometheus pages of Ray: live traffic."""

    kind: Literal["metrics"]
    urls: tuple[HttpUrl, ...] = ()
    """Pages of all nodes that routers are on; or a Prometheus' `/federate?match[]=...`, which
    passes on what it scrapes of them, wherever they are just now."""
    file_sd: Path | None = None
    """A service discovery file that lists the pages;
    `/tmp/ray/prom_metrics_service_discovery.json` on a Ray head."""
    window_s: Annotated[float, Field(ge=1)] = 20.0
    """Length of a window. Ray renews its pages every 10 s: shorter ones only look so."""
    min_window_requests: PositiveInt = 10
    """Of each arm; a window with fewer grows."""

    @model_validator(mode="after")
    def _knows_a_page(self) -> Self:
        if not self.urls and self.file_sd is None:
            raise ValueError(
                "`metrics` needs `urls`, or `file_sd`: "
                "/tmp/ray/prom_metrics_service_discovery.json on a Ray head"
            )
        return self


class CampaignConfig(StrictModel):
    """The records of a load campaign, which asks both variants the same: finished, or under way."""

    kind: Literal["campaign"]
    folder: Path
    """Of `quantile loadtest`."""
    look_pairs: PositiveInt = 100
    """How many pairs each look takes."""


EvidenceConfig = Annotated[
    ProbesConfig | MetricsConfig | CampaignConfig, Field(discriminator="kind")
]
