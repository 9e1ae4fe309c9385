"""The one home of metric names, their labels and their meaning."""

import math
from dataclasses import dataclass

RAY_PREFIX = "ray_"


@dataclass(frozen=True)
class MetricName:
    """A metric as Prometheus will show it (Ray adds the prefix `ray_`)."""

    name: str
    description: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class HistogramName(MetricName):
    """A histogram, with the upper bounds of its buckets."""

    buckets: tuple[float, ...]


def _geometric(first: float, last: float, per_decade: int) -> tuple[float, ...]:
    """Bounds from `first` to `last`, `per_decade` for each power of ten, to three digits.

    A quantile read off such buckets is wrong by half their width at most: 12 a decade, 10 %.
    """
    steps = round(math.log10(last / first) * per_decade)
    return tuple(float(f"{first * 10 ** (i / per_decade):.3g}") for i in range(steps + 1))


TTFT_BUCKETS_S = _geometric(0.001, 100.0, 12)
TPOT_BUCKETS_S = _geometric(0.0001, 10.0, 12)
OVERHEAD_BUCKETS_S = _geometric(0.00001, 1.0, 6)

ROUTER_REQUESTS = MetricName(
    "quantile_router_requests_total",
    "Requests relayed or refused, by the variant that served them and why it did.",
    ("variant", "reason", "status"),
)
ROUTER_FALLBACKS = MetricName(
    "quantile_router_fallbacks_total",
    "Attempts at a variant that could not take the request, so that another was asked.",
    ("variant",),
)
ROUTER_BROKEN_STREAMS = MetricName(
    "quantile_router_broken_streams_total",
    "Answers that broke off after their first byte.",
    ("variant",),
)
ROUTER_RETRIES = MetricName(
    "quantile_router_retries_total",
    "Requests asked again after a variant failed them before their first byte (outcome: asked), or "
    "not, since the retry budget was spent (refused).",
    ("variant", "outcome"),
)
ROUTER_BREAKER_STATE = MetricName(
    "quantile_router_breaker_open",
    "A variant's circuit breaker: 0 closed, 0.5 half open, 1 open.",
    ("variant",),
)
ROUTER_BREAKER_CHANGES = MetricName(
    "quantile_router_breaker_changes_total",
    "Changes of a variant's circuit breaker, by the state it went to.",
    ("variant", "state"),
)
ROUTER_DEADLINES = MetricName(
    "quantile_router_deadlines_exceeded_total",
    "Requests whose time was up: before they had a place in the router (where: waiting), before "
    "their first byte (first_byte), or after it (stream); or that outlasted the drain of a router "
    "replica that was stopped (drain).",
    ("variant", "where"),
)
ROUTER_TTFT = HistogramName(
    "quantile_router_ttft_seconds",
    "Of whole streams: from the whole request at the router to the first byte of the body.",
    ("variant",),
    TTFT_BUCKETS_S,
)
ROUTER_TPOT = HistogramName(
    "quantile_router_tpot_seconds",
    "Time per output token after the first, of whole streams that tell their usage.",
    ("variant",),
    TPOT_BUCKETS_S,
)
ROUTER_DURATION = HistogramName(
    "quantile_router_duration_seconds",
    "Of whole generations, streams or not: from the whole request at the router to the last byte.",
    ("variant",),
    TTFT_BUCKETS_S,
)
ROUTER_OVERHEAD = HistogramName(
    "quantile_router_overhead_seconds",
    "The router's own time before a variant is asked: from the whole request to the decision, "
    "without the wait for a place.",
    (),
    OVERHEAD_BUCKETS_S,
)
ROUTER_IN_FLIGHT = MetricName(
    "quantile_router_in_flight",
    "Requests that this router replica has sent to a variant and that are not over.",
    ("variant",),
)
ROUTER_VARIANT_READY = MetricName(
    "quantile_router_variant_ready",
    "What this router replica found at its last look: 1 the variant is ready, 0.5 it is asleep and "
    "a request wakes it, 0 neither.",
    ("variant",),
)
ROUTER_SPLIT = MetricName(
    "quantile_router_split_bp",
    "The split in force for a public name, in basis points, before ladder and cohorts.",
    ("alias", "variant"),
)
LADDER_SHARE = MetricName(
    "quantile_ladder_share_bp",
    "Share of the best rung's traffic that the precision ladder gives each variant, in basis "
    "points, of one router replica.",
    ("alias", "variant"),
)
LADDER_LIMIT = MetricName(
    "quantile_ladder_in_flight_limit",
    "Requests that a rung may have in flight within its SLO, given or learned, of one router "
    "replica.",
    ("alias", "variant"),
)
LADDER_RUNG = MetricName(
    "quantile_ladder_rung",
    "The cheapest rung that has a share: 0 is the best.",
    ("alias",),
)
LADDER_BOTTOM_SHARE = MetricName(
    "quantile_ladder_bottom_share_bp",
    "Share of the best rung's traffic that is on the cheapest rung: 10000 is the ladder's end.",
    ("alias",),
)
LADDER_MOVES = MetricName(
    "quantile_ladder_moves_total",
    "Moves of share away from a rung (down) or back to it (up).",
    ("alias", "variant", "direction"),
)
MEMORY_PLANNED = MetricName(
    "quantile_engine_memory_planned_bytes",
    "What the engine may hold on the device, by its memory plan.",
    ("variant", "device"),
)
MEMORY_HELD = MetricName(
    "quantile_engine_memory_held_bytes",
    "What the engine holds on the device: its processes' bytes now (source: pids), or what the "
    "device lost at its start, where it does not tell processes apart (source: start).",
    ("variant", "device", "source"),
)
MEMORY_TOTAL = MetricName(
    "quantile_engine_device_bytes",
    "All the memory of the device that the engine is on, as the device reports it.",
    ("variant", "device"),
)
ENGINE_FRACTION = MetricName(
    "quantile_engine_gpu_fraction",
    "Share of each of its GPUs that the plan gives the engine, by the planned type.",
    ("variant", "gpu"),
)
ENGINE_STARTED = MetricName(
    "quantile_engine_started_timestamp_seconds",
    "When this replica's engine was ready to serve, in seconds since 1970.",
    ("variant",),
)
ENGINE_WEIGHTS = MetricName(
    "quantile_engine_weight_bytes",
    "Bytes of the variant's weights, with what it is.",
    ("variant", "method", "bits"),
)
ENGINE_RUNNING = MetricName(
    "quantile_engine_running_requests",
    "Requests that the engine works on at this moment: its batch.",
    ("variant",),
)
ENGINE_WAITING = MetricName(
    "quantile_engine_waiting_requests",
    "Requests that the engine took and holds back.",
    ("variant",),
)
ENGINE_KV_USE = MetricName(
    "quantile_engine_kv_use_ratio",
    "Share of the engine's KV cache in use, from 0 to 1.",
    ("variant",),
)
ADMISSION_REJECTED = MetricName(
    "quantile_admission_rejected_total",
    "Requests that the router refused before it chose a variant, by tenant and reason.",
    ("tenant", "reason"),
)
ADMISSION_IN_FLIGHT = MetricName(
    "quantile_admission_in_flight",
    "Requests that this router replica has under way.",
    (),
)
ADMISSION_WAITING = MetricName(
    "quantile_admission_waiting",
    "Requests that wait for a place in this router replica.",
    (),
)
ADMISSION_WAIT = HistogramName(
    "quantile_admission_wait_seconds",
    "How long requests waited for their place, those that never got one included.",
    (),
    TTFT_BUCKETS_S,
)
ADMISSION_KEYS_STALE = MetricName(
    "quantile_admission_keys_stale",
    "1 while the file of API keys is broken or gone and the last good one is in force; else 0.",
    (),
)
TENANT_REQUESTS = MetricName(
    "quantile_tenant_requests_total",
    "Requests admitted, by tenant. The first 100 tenants have a label each, the rest are `other`.",
    ("tenant",),
)
TENANT_TOKENS = MetricName(
    "quantile_tenant_tokens_total",
    "Tokens that answers' `usage` reported, by tenant and kind (prompt, completion).",
    ("tenant", "kind"),
)
SHADOW_MIRRORED = MetricName(
    "quantile_shadow_mirrored_total",
    "Mirrored requests that both variants answered and that were compared, by kind: greedy (by "
    "text and times) or sampled (by times alone).",
    ("variant", "shadow", "kind"),
)
SHADOW_DROPPED = MetricName(
    "quantile_shadow_dropped_total",
    "Requests chosen to be mirrored that were not, or whose answers were not compared; the kind is "
    "the reason.",
    ("variant", "shadow", "kind"),
)
SHADOW_AGREEMENT = HistogramName(
    "quantile_shadow_agreement_ratio",
    "How much a greedy answer of the shadow agrees with the primary's, from 0 to 1, by kind: "
    "exact, normalised, token_prefix or word_prefix, finish_reason.",
    ("variant", "shadow", "kind"),
    (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0),
)
SHADOW_LENGTH = HistogramName(
    "quantile_shadow_length_ratio",
    "Length of the shadow's greedy answer over the primary's, by the unit: token or word.",
    ("variant", "shadow", "kind"),
    (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0, 1.01, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0),
)
SHADOW_LATENCY = HistogramName(
    "quantile_shadow_latency_seconds",
    "TTFT and duration of mirrored requests on both sides, by kind: primary_ttft, shadow_ttft, "
    "primary_duration, shadow_duration.",
    ("variant", "shadow", "kind"),
    TTFT_BUCKETS_S,
)
ROLLOUT_STEP = MetricName(
    "quantile_rollout_step",
    "The step of a rollout that is on, from 0. Served by `quantile rollout --metrics-port` itself.",
    ("model", "candidate"),
)
ROLLOUT_SHARE = MetricName(
    "quantile_rollout_share_bp",
    "Share of baseline's and candidate's traffic that the rollout gives the candidate.",
    ("model", "candidate"),
)
ROLLOUT_REQUESTS = MetricName(
    "quantile_rollout_candidate_requests",
    "Requests of the candidate that were seen in the step that is on.",
    ("model", "candidate"),
)
ROLLOUT_AGAINST = MetricName(
    "quantile_rollout_against_log10_e",
    "Decimal log of the e-value against the candidate: rolled back at -log10(alpha).",
    ("model", "candidate"),
)
ROLLOUT_MARGIN = MetricName(
    "quantile_rollout_margin_log10_e",
    "By guard: decimal log of the e-value for its margin being kept; shown at -log10(alpha).",
    ("model", "candidate", "guard"),
)
ROLLOUT_VERDICT = MetricName(
    "quantile_rollout_verdict",
    "1 for the verdict of the last look, 0 for the others.",
    ("model", "candidate", "verdict"),
)

BOUNDED_BY = {
    "variant": "variants of the Serve file, and `none`",
    "shadow": "variants of the Serve file",
    "candidate": "variants of the Serve file",
    "alias": "aliases of the Serve file",
    "model": "aliases of the Serve file",
    "reason": "`RouteReason`, or admission's `Reason`",
    "status": "statuses that we or an engine answer: some twenty",
    "outcome": "asked, refused",
    "state": "closed, half_open, open",
    "where": "waiting, first_byte, stream, drain",
    "direction": "down, up",
    "tenant": "100 names, and `other` (`AdmissionCounts`)",
    "kind": "a closed set of each metric, named in its description",
    "device": "devices of a node",
    "source": "pids, start",
    "gpu": "types of `configs/gpus.yaml`",
    "method": "one of each variant",
    "bits": "one of each variant",
    "guard": "guards of the rollout's file",
    "verdict": "`RolloutVerdict`",
}
"""Each label, and what keeps the number of its values small: nothing comes from a request."""


def every_metric() -> tuple[MetricName, ...]:
    """All of this module, in its order."""
    return tuple(each for each in globals().values() if isinstance(each, MetricName))


def plain_names(metric: MetricName) -> tuple[str, ...]:
    """The series of a metric that is served without Ray."""
    if isinstance(metric, HistogramName):
        return tuple(f"{metric.name}_{part}" for part in ("bucket", "count", "sum"))
    return (metric.name,)


def exported_names(metric: MetricName) -> tuple[str, ...]:
    """The series that Prometheus finds of a metric that went through Ray."""
    return tuple(f"{RAY_PREFIX}{name}" for name in plain_names(metric))
