"""The schema of `configs/campaigns/*.yaml`: which load on which variants, and what counts."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from pydantic import Field, ValidationError, model_validator

from loadtests.campaign.limits import Slo, ValidityLimits
from loadtests.campaign.stages import ConcurrencyStage, LoadStage, Search, TraceStage
from loadtests.campaign.strict import Count, NotNegative, Positive, Strict
from loadtests.campaign.target import Metrics, Target
from loadtests.campaign.workload import TracePrompts, Workload
from serve_app.domain.errors import ConfigError


class Campaign(Strict):
    """One load campaign: every stage, in `blocks` blocks, on every variant; or a search.

    A cell is one variant under one stage in one block. Within a block the cells of a stage follow
    each other in random order and get the same arrivals, prompts and output lengths.
    """

    target: Target
    workload: Workload
    stages: tuple[LoadStage, ...] = ()
    search: Search | None = None
    blocks: Count = 1
    """Blocks of different arrivals and prompts; statistics pair the variants within each."""
    repeats: Count = 1
    """Cells of each variant and stage within a block, all with the same requests. With 2 or
    more the report says how far a variant differs from itself: the noise floor. (An engine's
    prefix cache may have the second cell's prompts: that is then part of it.)"""
    seed: int = 0
    warmup_s: NotNegative = 0.0
    cooldown_s: NotNegative = 0.0
    timeout_s: Positive = 60.0
    """A request that is not finished this long after it was sent has failed."""
    in_flight_cap: Count = 128
    """Open requests that the client holds at most; arrivals beyond it are failures. It is split
    over the load processes, each of which keeps to its share."""
    give_up_after: Count = 50
    """Requests in a row that found no server, after which the run stops, as partial."""
    slo: Slo | None = None
    """What a request must meet. Stages with `gate` decide the exit status by it, or the search;
    where no stage has `gate` the report shows it, and a whole and valid run exits with 0."""
    same_within: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Differences within this share count as none in comparisons."""
    validity: ValidityLimits = ValidityLimits()
    metrics: Metrics | None = None

    @model_validator(mode="after")
    def _is_stages_or_search(self) -> "Campaign":
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"need distinct stage names, have {names}")
        if bool(self.stages) == (self.search is not None):
            raise ValueError("need either stages or search")
        if self.search is not None and self.slo is None:
            raise ValueError("search: need slo, it looks for the highest rate that meets it")
        if self.search is not None and (self.blocks, self.repeats) != (1, 1):
            raise ValueError(
                f"search: need blocks and repeats of 1, have {self.blocks} and {self.repeats}: "
                "it repeats a rate as search.max_repeats says, leave them out"
            )
        baseline, variants = self.target.baseline, self.target.variants
        if baseline is not None and variants != "all" and baseline not in variants:
            raise ValueError(f"target.baseline: need one of {list(variants)}, have {baseline!r}")
        return self

    @model_validator(mode="after")
    def _workload_fits_the_stages(self) -> "Campaign":
        workload, stages = self.workload, self.stages
        if isinstance(workload.prompts, TracePrompts) and not (
            stages and all(isinstance(stage, TraceStage) for stage in stages)
        ):
            raise ValueError("workload.prompts: kind trace needs stages that all are traces")
        for stage in stages:
            if isinstance(stage, TraceStage) and (workload.sessions or workload.shared_prefix):
                raise ValueError(
                    f"stage {stage.name}: a trace says what is shared: "
                    "leave out sessions and shared_prefix"
                )
        return self

    @model_validator(mode="after")
    def _closed_loops_can_be_played(self) -> "Campaign":
        for stage in self.stages:
            if not isinstance(stage, ConcurrencyStage):
                continue
            if self.workload.sessions:
                raise ValueError(
                    f"stage {stage.name}: sessions need arrivals that the plan times, have a "
                    "closed loop: leave out sessions"
                )
            if stage.gate and self.slo is not None:
                raise ValueError(
                    f"stage {stage.name}: need gate: false, have true: users of a closed loop ask "
                    "a slow server less, so that it would pass (coordinated omission). Leave "
                    "gate out, and judge the SLO at a stage with a rate"
                )
            if stage.concurrency > self.in_flight_cap:
                raise ValueError(
                    f"stage {stage.name}: need in_flight_cap of {stage.concurrency} or more, as "
                    f"many as users, have {self.in_flight_cap}: raise it or lower concurrency"
                )
        return self

    def variant_names(self) -> tuple[str, ...]:
        """The variants by name. Raises ConfigError while they are still `all`."""
        if isinstance(self.target.variants, str):
            raise ConfigError("variants are `all`: resolve them against GET /v1/models first")
        return self.target.variants

    def baseline(self) -> str:
        """The variant that the others are compared with. Raises as `variant_names` does."""
        return self.target.baseline or self.variant_names()[0]

    def with_target(self, **changes: object) -> "Campaign":
        """A copy with other target fields, checked again. Raises ConfigError."""
        raw = self.model_dump(mode="json")
        raw["target"] |= changes
        return parse_campaign(raw, "campaign")

    def cell_s(self, timed: LoadStage | Search) -> float:
        """Length of one cell in seconds: warm-up, measured window, cool-down."""
        return self.warmup_s + timed.duration_s + self.cooldown_s

    def planned_s(self, n_variants: int) -> float:
        """Wall time in seconds that the stages ask for, or a search at most, without draining
        between cells.
        """
        if self.search is not None:
            n_cells = self.search.max_probes * self.search.max_repeats * n_variants
            return self.cell_s(self.search) * n_cells
        per_repeat_s = sum(self.cell_s(stage) for stage in self.stages)
        return per_repeat_s * self.blocks * self.repeats * n_variants


def parse_campaign(raw: object, source: str) -> Campaign:
    """Check plain data. Raises ConfigError that lists every wrong field of `source`."""
    try:
        plain = msgspec.json.encode(raw)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{source}: not a campaign: need text for keys and no alias that holds itself, have "
            f"else ({error}): to YAML on, off, yes, no and ~ are no text, quote them"
        ) from error
    try:
        # as JSON, strict mode takes arrays for tuples and strings for paths, and nothing else
        return Campaign.model_validate_json(plain, strict=True)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in each['loc']) or '(top)'}: {each['msg']}"
            for each in error.errors()
        ]
        raise ConfigError(f"{source}: not a campaign\n" + "\n".join(lines)) from error


def load_campaign(path: Path) -> Campaign:
    """Read and check a campaign file; relative paths in it are taken from its folder.

    Raises ConfigError if the file is missing, not YAML, or not a campaign.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # no text, no date, ...
        raise ConfigError(f"{path}: cannot read the campaign: {error}") from error
    parse_campaign(raw, str(path))
    return parse_campaign(_absolute(raw, path.parent.resolve()), str(path))


def _absolute(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`raw` with the paths that a campaign may hold made absolute."""
    prompts = raw["workload"]["prompts"]
    for holder in (prompts, *(raw.get("stages") or ()), raw.get("metrics") or {}):
        for key in ("path", "file_sd"):
            if holder.get(key) is not None:
                holder[key] = str(folder / holder[key])
    return raw
