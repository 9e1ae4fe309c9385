"""The schema of `configs/campaigns/*.yaml`: which load on which variants, and what counts.

A misspelt key in a load test is a test of something else, so unknown keys are refused and
nothing is coerced from one type to another.
"""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve_app.domain.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Target(Strict):
    """Where the load goes. Each request pins one variant as `<model>@<variant>`."""

    base_url: str = "http://127.0.0.1:8000"
    """Scheme, host and port, without `/v1`."""
    model: str = Field(min_length=1)
    """Alias of the model, without a pin."""
    variants: Literal["all"] | tuple[str, ...] = "all"
    """Variant names; `all` takes every `<model>@<variant>` that `GET /v1/models` lists."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null sends none."""

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"need http(s)://host[:port], have {value!r}")
        if parts.path.rstrip("/").endswith("/v1"):
            raise ValueError(f"leave out /v1, have {value!r}")
        return value.rstrip("/")

    @field_validator("variants")
    @classmethod
    def _are_distinct(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, tuple) and (not value or len(set(value)) != len(value)):
            raise ValueError(f"need one or more distinct names, have {list(value)}")
        return value


class CorpusPrompts(Strict):
    """Questions of the reference corpus."""

    kind: Literal["corpus"] = "corpus"
    split: Literal["seen", "unseen"] = "seen"


class JsonlPrompts(Strict):
    """One JSON object per line with a `prompt` string; `path` is relative to the YAML file."""

    kind: Literal["jsonl"]
    path: Path


class Workload(Strict):
    """What each request asks for."""

    prompts: Annotated[CorpusPrompts | JsonlPrompts, Field(discriminator="kind")]
    max_tokens: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Lowest and highest output length in tokens; each request draws one, both ends included."""
    forced_length: bool = True
    """Send `ignore_eos` and `min_tokens`: variants that stop early must not look faster."""
    temperature: NotNegative = 0.0

    @field_validator("max_tokens")
    @classmethod
    def _is_range(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"need lowest <= highest, have {list(value)}")
        return value


class LoadStage(Strict):
    """One load level, open loop: arrivals do not wait for answers.

    `constant` spaces arrivals evenly. `poisson` is a Poisson process given its count: the same
    number of requests in every cell, at independent uniform times.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    kind: Literal["constant", "poisson"]
    rate_per_s: Positive
    duration_s: Positive
    """Length of the measured window of one cell; warm-up and cool-down come on top."""


class Slo(Strict):
    """Limits that one request must meet, on the user's clock (from the planned send time)."""

    ttft_ms: Positive | None = None
    e2e_ms: Positive | None = None
    tpot_ms: Positive | None = None

    @model_validator(mode="after")
    def _has_a_limit(self) -> "Slo":
        if self.ttft_ms is None and self.e2e_ms is None and self.tpot_ms is None:
            raise ValueError("need at least one of ttft_ms, e2e_ms, tpot_ms; or leave slo out")
        return self


class ValidityLimits(Strict):
    """Beyond these the client, not the server, made the numbers: the run is invalid."""

    lag_p99_ms: Positive = 10.0
    """P99 of t_send - t_sched."""
    lag_share_of_ttft: Positive = 0.05
    """P99 of the lag as a share of the median TTFT."""
    achieved_share: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Sent requests as a share of planned ones."""
    client_cpu_share: Annotated[float, Field(gt=0, le=1)] = 0.70
    """CPU time of the load process as a share of one core."""
    little_gap: Annotated[float, Field(gt=0, le=1)] = 0.03
    """|L - lambda W| / L between the pacer's own count and the records."""


class Campaign(Strict):
    """One load campaign: every stage, in `blocks` blocks, on every variant.

    A cell is one variant under one stage in one block. Within a block the cells follow each
    other in random order and get the same arrivals, prompts and output lengths.
    """

    target: Target
    workload: Workload
    stages: tuple[LoadStage, ...] = Field(min_length=1)
    blocks: Annotated[int, Field(ge=1)] = 1
    seed: int = 0
    warmup_s: NotNegative = 0.0
    cooldown_s: NotNegative = 0.0
    timeout_s: Positive = 60.0
    """A request that is not finished this long after it was sent has failed."""
    in_flight_cap: Annotated[int, Field(ge=1)] = 128
    """Open requests that the client holds at most; arrivals beyond it are failures."""
    slo: Slo | None = None
    validity: ValidityLimits = ValidityLimits()

    @model_validator(mode="after")
    def _stage_names_are_distinct(self) -> "Campaign":
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"need distinct stage names, have {names}")
        return self

    def variant_names(self) -> tuple[str, ...]:
        """The variants by name. Raises ConfigError while they are still `all`."""
        if isinstance(self.target.variants, str):
            raise ConfigError("variants are `all`: resolve them against GET /v1/models first")
        return self.target.variants

    def with_target(self, **changes: object) -> "Campaign":
        """A copy with other target fields, checked again. Raises ConfigError."""
        raw = self.model_dump(mode="json")
        raw["target"] |= changes
        return parse_campaign(raw, "campaign")

    def planned_s(self, n_variants: int) -> float:
        """Wall time in seconds that the plan asks for, without draining between cells."""
        per_cell = sum(s.duration_s + self.warmup_s + self.cooldown_s for s in self.stages)
        return per_cell * self.blocks * n_variants


def parse_campaign(raw: object, source: str) -> Campaign:
    """Check plain data. Raises ConfigError that lists every wrong field of `source`."""
    try:
        # as JSON, strict mode takes arrays for tuples and strings for paths, and nothing else
        return Campaign.model_validate_json(msgspec.json.encode(raw), strict=True)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in each['loc']) or '(top)'}: {each['msg']}"
            for each in error.errors()
        ]
        raise ConfigError(f"{source}: not a campaign\n" + "\n".join(lines)) from error


def load_campaign(path: Path) -> Campaign:
    """Read and check a campaign file; relative prompt paths are taken from its folder.

    Raises ConfigError if the file is missing, not YAML, or not a campaign.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot read the campaign: {error}") from error
    campaign = parse_campaign(raw, str(path))
    prompts = campaign.workload.prompts
    if isinstance(prompts, JsonlPrompts) and not prompts.path.is_absolute():
        absolute = prompts.model_copy(update={"path": (path.parent / prompts.path).resolve()})
        workload = campaign.workload.model_copy(update={"prompts": absolute})
        return campaign.model_copy(update={"workload": workload})
    return campaign
