"""The simulation: arrivals, engines and a policy on one clock. Deterministic."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from serve_app.simulate.curves import ServiceCurve
from serve_app.simulate.engine import Engine, Job
from serve_app.simulate.policies import Policy

_ARRIVAL, _STEP, _TICK = range(3)


@dataclass(frozen=True)
class Arrival:
    """One request of a trace."""

    at_s: float
    tokens: int


@dataclass(frozen=True)
class Fleet:
    """What serves: a curve and a number of replicas per variant."""

    curves: Mapping[str, ServiceCurve]
    replicas: Mapping[str, int] = field(default_factory=dict)
    """Of variants with more than one."""
    shares_device: bool = False
    """All replicas take turns on one device: with n at work, each step takes n times as long."""


@dataclass(frozen=True)
class Played:
    """What became of the trace: every request ended."""

    jobs: tuple[Job, ...]
    shares: tuple[tuple[float, Mapping[str, float]], ...]
    """(second, shares in basis points), whenever they changed."""


class Clock:
    """The simulated time, in seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now_s


def play(trace: Sequence[Arrival], fleet: Fleet, make_policy: Callable[[Clock], Policy]) -> Played:
    """Send `trace` through a policy until the last answer has ended."""
    clock = Clock()
    policy = make_policy(clock)
    engines = {
        name: [Engine(curve) for _ in range(fleet.replicas.get(name, 1))]
        for name, curve in fleet.curves.items()
    }
    jobs = [Job(index, each.at_s, each.tokens) for index, each in enumerate(trace)]
    order = count()
    events: list[tuple[float, int, int, tuple[str, int]]] = [
        (job.arrived_s, next(order), _ARRIVAL, ("", job.index)) for job in jobs
    ]
    heapq.heapify(events)
    if policy.tick_s is not None:
        heapq.heappush(events, (policy.tick_s, next(order), _TICK, ("", 0)))
    shares = [(0.0, dict(policy.shares_bp()))]
    n_left, n_busy = len(jobs), 0

    def begin(variant: str, replica: int) -> None:
        nonlocal n_busy
        engine = engines[variant][replica]
        if engine.is_busy or not engine.in_flight:
            return
        n_busy += 1
        length_s = engine.begin(float(n_busy) if fleet.shares_device else 1.0)
        heapq.heappush(events, (clock.now_s + length_s, next(order), _STEP, (variant, replica)))

    while n_left:
        clock.now_s, _, kind, (variant, number) = heapq.heappop(events)
        if kind == _ARRIVAL:
            job = jobs[number]
            in_flight = {name: sum(e.in_flight for e in each) for name, each in engines.items()}
            job.variant = policy.choose(job, in_flight, clock.now_s)
            replicas = engines[job.variant]
            job.replica = min(range(len(replicas)), key=lambda i: replicas[i].in_flight)
            replicas[job.replica].take(job)
            begin(job.variant, job.replica)
        elif kind == _STEP:
            n_busy -= 1
            begun, done = engines[variant][number].end(clock.now_s)
            for job in begun:
                policy.began(job, clock.now_s)
            for job in done:
                policy.ended(job, clock.now_s)
            n_left -= len(done)
            begin(variant, number)
        else:
            policy.tick(clock.now_s)
            now = dict(policy.shares_bp())
            if now != shares[-1][1]:
                shares.append((clock.now_s, now))
            assert policy.tick_s is not None
            heapq.heappush(events, (clock.now_s + policy.tick_s, next(order), _TICK, ("", 0)))
    return Played(tuple(jobs), tuple(shares))
