"""How many replicas one variant wants by itself: up fast, down slowly, to zero when idle. Pure.

Load is counted in replicas' worth (`demand`): 2.4 means that 2.4 replicas would be just full. The
wish goes up when demand exceeds the replicas, and down only when it would fit into fewer with
`slack` to spare, so that no constant load makes it swing.
"""

import math
from dataclasses import dataclass, replace

from serve_app.domain.errors import ConfigError


@dataclass(frozen=True)
class Targets:
    """How full a replica may be, and how long a change must be asked for before it happens."""

    ongoing_per_replica: float
    """Requests in one replica, running and waiting, at which its latency still holds."""
    kv_use_limit: float = 0.9
    """Share of the KV cache above which requests are about to be preempted."""
    slack: float = 0.8
    """How full the remaining replicas may be for one to be given up."""
    upscale_delay_s: float = 2.0
    downscale_delay_s: float = 300.0
    """Per replica given up: from four to one takes three delays."""
    idle_s: float = 600.0
    """Time without any request after which a variant whose minimum is 0 goes to sleep."""

    def __post_init__(self) -> None:
        if self.ongoing_per_replica <= 0:
            raise ConfigError(f"need ongoing_per_replica > 0, have {self.ongoing_per_replica}")
        for name, value in (("kv_use_limit", self.kv_use_limit), ("slack", self.slack)):
            if not 0 < value <= 1:
                raise ConfigError(f"need 0 < {name} <= 1, have {value}")
        for name in ("upscale_delay_s", "downscale_delay_s", "idle_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"need {name} >= 0, have {getattr(self, name)}")


@dataclass(frozen=True)
class Observation:
    """One variant at one instant. What no replica reported is None, never 0."""

    now_s: float
    replicas: int
    """Replicas that serve."""
    target: int
    """Replicas that were decided on before; those above `replicas` are starting."""
    minimum: int
    maximum: int
    ongoing: float
    """Requests that run or wait anywhere: at the ingress, in a replica, in an engine."""
    queued: float = 0.0
    """Those of them that wait at the ingress for a replica."""
    reporting: int = 0
    """Replicas that the next three are of: a new one serves before it first reports."""
    running: float | None = None
    """Requests that the engines work on, over the replicas that report."""
    waiting: float | None = None
    """Requests that the engines hold back, likewise."""
    kv_use: float | None = None
    """Share of the KV cache in use, their mean."""
    served_total: float | None = None
    """Requests ever taken by the replicas that serve now; any change of it is activity."""


@dataclass(frozen=True)
class Memory:
    """What the next wish needs to know of the past."""

    capacity: float | None = None
    """Requests that fit one engine, learnt when it held some back; None: it never did."""
    above_since_s: float | None = None
    below_since_s: float | None = None
    idle_since_s: float | None = None
    served_total: float | None = None


@dataclass(frozen=True)
class Wish:
    """How many replicas a variant wants, how loaded it is, and why."""

    replicas: int
    demand: float
    reason: str


def wish(seen: Observation, targets: Targets, memory: Memory) -> tuple[Wish, Memory]:
    """The variant's own wish, within its bounds, as if GPUs were free."""
    memory = _note_activity(seen, memory)
    if seen.replicas == 0:
        return _without_replicas(seen, targets, memory)
    memory = replace(memory, capacity=_capacity(seen, targets, memory))
    demand, why = _demand(seen, targets, memory)
    wanted, why, memory = _settle(seen, targets, memory, demand, why)
    return Wish(_bounded(seen, wanted), demand, why), memory


def _note_activity(seen: Observation, memory: Memory) -> Memory:
    """Idle means that no request came: gauges alone would miss those that are short."""
    busy = seen.queued > 0 or (seen.running or 0) + (seen.waiting or 0) > 0
    if seen.replicas == 0:
        busy = seen.ongoing > 0
    elif seen.served_total is None or seen.served_total != memory.served_total:
        busy = True
    idle_since_s = seen.now_s if busy or memory.idle_since_s is None else memory.idle_since_s
    return replace(memory, idle_since_s=idle_since_s, served_total=seen.served_total)


def _without_replicas(seen: Observation, targets: Targets, memory: Memory) -> tuple[Wish, Memory]:
    memory = replace(memory, above_since_s=None, below_since_s=None)
    demand = seen.ongoing / targets.ongoing_per_replica
    if seen.ongoing > 0:
        return Wish(_bounded(seen, max(1, seen.target)), max(demand, 1.0), "woken"), memory
    if seen.target == 0:
        return Wish(seen.minimum, 0.0, "asleep"), memory
    if seen.minimum == 0 and _is_idle(seen, targets, memory):
        return Wish(0, 0.0, f"idle for {targets.idle_s:.0f} s, and never got a GPU"), memory
    return Wish(_bounded(seen, seen.target), 1.0, "starting"), memory


def _capacity(seen: Observation, targets: Targets, memory: Memory) -> float | None:
    """Requests per replica that an engine really holds.

    An engine that holds requests back is full with what runs; one that holds more than was
    thought, and none back, proves the thought wrong. Nothing is learnt before all have reported.
    """
    if seen.running is None or seen.waiting is None or seen.reporting < seen.replicas:
        return memory.capacity
    per_replica = seen.running / seen.replicas
    if seen.waiting >= seen.replicas and per_replica >= 1:
        return per_replica
    if memory.capacity is not None and per_replica > memory.capacity:
        return per_replica
    return memory.capacity


def _demand(seen: Observation, targets: Targets, memory: Memory) -> tuple[float, str]:
    per_replica, limit = targets.ongoing_per_replica, "target"
    if memory.capacity is not None and memory.capacity < per_replica:
        per_replica, limit = memory.capacity, "engine limit"
    demand = seen.ongoing / per_replica
    why = f"{seen.ongoing:.1f} requests at {per_replica:.1f} per replica ({limit})"
    if seen.kv_use is not None:
        by_cache = seen.kv_use * seen.reporting / targets.kv_use_limit
        if by_cache > demand:
            return by_cache, f"KV cache {seen.kv_use:.0%} used, limit {targets.kv_use_limit:.0%}"
    return demand, why


def _settle(
    seen: Observation, targets: Targets, memory: Memory, demand: float, why: str
) -> tuple[int, str, Memory]:
    now_s = seen.now_s
    if seen.minimum == 0 and _is_idle(seen, targets, memory):
        calm = replace(memory, above_since_s=None, below_since_s=None)
        return 0, f"idle for {targets.idle_s:.0f} s", calm
    enough = _bounded(seen, max(1, math.ceil(demand)))
    roomy = _bounded(seen, max(1, math.ceil(demand / targets.slack)))
    if enough > seen.target:
        since_s = now_s if memory.above_since_s is None else memory.above_since_s
        memory = replace(memory, above_since_s=since_s, below_since_s=None)
        return (enough if now_s - since_s >= targets.upscale_delay_s else seen.target), why, memory
    if roomy < seen.target:
        since_s = now_s if memory.below_since_s is None else memory.below_since_s
        if now_s - since_s < targets.downscale_delay_s:
            memory = replace(memory, above_since_s=None, below_since_s=since_s)
            return seen.target, why, memory
        memory = replace(memory, above_since_s=None, below_since_s=now_s)
        return seen.target - 1, why, memory
    return seen.target, why, replace(memory, above_since_s=None, below_since_s=None)


def _is_idle(seen: Observation, targets: Targets, memory: Memory) -> bool:
    return memory.idle_since_s is not None and seen.now_s - memory.idle_since_s >= targets.idle_s


def _bounded(seen: Observation, replicas: int) -> int:
    return max(seen.minimum, min(seen.maximum, replicas))
