"""`autoscaling_config.policy` of a variant: `serve_app.scaling.serve_policy:VariantAutoscaler`.

Serve makes one object per variant in its controller and calls it ten times a second. What it is
called with is read here and decided on in `ledger`, jointly for all variants.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serve_app.domain.errors import ConfigError
from serve_app.domain.units import BP_TOTAL
from serve_app.scaling import ledger
from serve_app.scaling.ledger import Stake
from serve_app.scaling.load import Observation, Targets

logger = logging.getLogger("ray.serve")

RUNNING, WAITING, KV_USE, SERVED = "engine_running", "engine_waiting", "engine_kv_use", "served"
"""Names under which a replica reports (`VariantServer.record_autoscaling_stats`)."""


class Point(Protocol):
    """One value of a series that a replica reported."""

    value: float


class Config(Protocol):
    """The file's `autoscaling_config`."""

    upscale_delay_s: float
    downscale_delay_s: float

    def get_target_ongoing_requests(self) -> float:
        """`target_ongoing_requests`."""


class Context(Protocol):
    """What we read of `ray.serve.config.AutoscalingContext`; the lists are computed when read."""

    app_name: str
    current_num_replicas: int
    target_num_replicas: int
    total_num_requests: float
    total_queued_requests: float
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None
    raw_metrics: Mapping[str, Mapping[Any, Sequence[Point]]] | None
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    current_time: float
    config: Config


class VariantAutoscaler:
    """How many replicas of one variant there may be, under the budget that all variants share.

    `gpu` is the variant's own `args.gpu` (type and fraction), `budget` the GPUs per type that all
    variants together may take; without `gpu` a variant takes none of it. All other arguments are
    fields of `Targets`.
    """

    def __init__(
        self,
        gpu: Mapping[str, Any] | None = None,
        budget: Mapping[str, int] | None = None,
        tensor_parallel_size: int = 1,
        weight: float = 1.0,
        **targets: float,
    ) -> None:
        self._fault: str | None = None
        self._said = ""
        self._targets: Mapping[str, float] = targets
        self._stake: Stake | None = None
        try:
            self._stake = stake_of(gpu, budget, tensor_parallel_size, weight)
            targets_of(1.0, targets)
        except ConfigError as error:
            # An exception here would stop Serve's control loop for every application.
            self._fault = str(error)
            logger.error("policy_kwargs refused, the replicas stay as they are: %s", error)

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """Called by Serve. Keeps the replicas as they are when it cannot decide, and tries again:
        an exception would stop Serve's control loop for every application.
        """
        if self._fault is None:
            try:
                decided = self._decide(context)
            except Exception as error:
                if repr(error) != self._said:
                    self._said = repr(error)
                    logger.exception("%s cannot be scaled now", context.app_name)
            else:
                self._said = ""
                return decided, {}
        return context.target_num_replicas, {}

    def _decide(self, context: Context) -> int:
        name, book = context.app_name, ledger.LEDGER
        if book.is_due(name, self, context.current_time):
            per_replica = context.config.get_target_ongoing_requests()
            seen = observe(context)
            book.report(name, self, self._stake, targets_of(per_replica, self._targets), seen)
        return book.replicas(name, context.target_num_replicas)


def stake_of(
    gpu: Mapping[str, Any] | None,
    budget: Mapping[str, int] | None,
    tensor_parallel_size: int,
    weight: float,
) -> Stake | None:
    """The variant's part in the common budget, None without a GPU. Raises ConfigError."""
    if gpu is None:
        return None
    kind, fraction = gpu.get("type"), gpu.get("fraction")
    if not isinstance(kind, str) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise ConfigError(
            f"policy_kwargs.gpu needs type and fraction (0 < fraction <= 1), have {dict(gpu)}: "
            "repeat the variant's args.gpu (a YAML alias keeps them one)"
        )
    if not budget or kind not in budget:
        raise ConfigError(
            f"policy_kwargs.budget needs the GPUs of type {kind} that all variants together may "
            f"take, have {dict(budget or {})}: add `budget: {{{kind}: 4}}`"
        )
    if any(not isinstance(n, int) or n < 0 for n in budget.values()):
        raise ConfigError(f"policy_kwargs.budget needs whole GPUs per type, have {dict(budget)}")
    if not weight > 0:
        raise ConfigError(f"policy_kwargs.weight needs to be above 0, have {weight}")
    size_bp = BP_TOTAL if tensor_parallel_size > 1 else round(fraction * BP_TOTAL)
    return Stake(kind, size_bp, tensor_parallel_size, weight, dict(budget))


def targets_of(ongoing_per_replica: float, others: Mapping[str, float]) -> Targets:
    """The load targets. Raises ConfigError for names or values that are none."""
    try:
        return Targets(ongoing_per_replica=ongoing_per_replica, **others)
    except TypeError as error:
        known = ", ".join(name for name in Targets.__dataclass_fields__ if "ongoing" not in name)
        raise ConfigError(f"policy_kwargs: {error}; known: {known}") from None


def observe(context: Context) -> Observation:
    """What Serve and the replicas say of a variant."""
    means = context.aggregated_metrics or {}
    series = (context.raw_metrics or {}).get(SERVED, {})
    last = [points[-1].value for points in series.values() if points]
    return Observation(
        now_s=context.current_time,
        replicas=context.current_num_replicas,
        target=context.target_num_replicas,
        minimum=context.capacity_adjusted_min_replicas,
        maximum=context.capacity_adjusted_max_replicas,
        ongoing=context.total_num_requests,
        queued=context.total_queued_requests,
        reporting=len(means.get(RUNNING) or ()),
        running=_total(means.get(RUNNING)),
        waiting=_total(means.get(WAITING)),
        kv_use=_mean(means.get(KV_USE)),
        served_total=sum(last) if last else None,
    )


def _total(by_replica: Mapping[Any, float] | None) -> float | None:
    return sum(by_replica.values()) if by_replica else None


def _mean(by_replica: Mapping[Any, float] | None) -> float | None:
    return sum(by_replica.values()) / len(by_replica) if by_replica else None
