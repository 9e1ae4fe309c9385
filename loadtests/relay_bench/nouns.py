"""What the relay benchmark measures: ways, levels, and what one round of one way showed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

DIRECT = "direct to the variant"
HAPROXY = "HAProxy, one thread"
ROUTER = "QuanTile's router, Serve replica"
DEPLOYED = "the same behind Serve's ingress"
HANDLES = "the same router, Serve handles"
LITELLM = "LiteLLM proxy"
SGLANG = "SGLang gateway"
PEERS = (LITELLM, SGLANG)
CLIENTS = 16
"""The level of the budgets, and of what is measured at one level alone."""
SILENT = "the router, telling nothing"
TRACED = "metrics, every request traced"
SAMPLED = "metrics, 1 of 100 traced"
LOGGED = "metrics, every request traced and logged"
TELLING = (SILENT, TRACED, SAMPLED, LOGGED)
"""Measured at the same moments: a few percent are less than what a machine's mood makes of two
moments. Their latencies are those of a machine that serves them all."""


def _nothing() -> None:
    """Most relays put nothing off."""


@dataclass(frozen=True)
class Level:
    """How much load one round offers: a closed loop of clients."""

    clients: int
    requests: int
    """Counted ones of each client; one more comes before them and opens the connection."""
    tokens: int
    """Of each answer."""


@dataclass(frozen=True)
class Way:
    """One way from the client to the variant."""

    name: str
    port: int
    path: str
    pids: tuple[int, ...] = ()
    """Processes of the relay itself; with their children, their CPU time is its cost."""
    helpers: Callable[[], Iterable[int]] = tuple
    """Others that the way needs now: an ingress before the relay, a pass behind it."""
    after: Callable[[], None] = _nothing
    """Has the relay do what it put off; its time belongs to the round."""


class Seen(msgspec.Struct, frozen=True):
    """What the client process reports of one round. Times in seconds."""

    tokens: int
    streams: int
    ttfts_s: list[float]
    """Of counted streams: from the request's first byte out to the first token in."""
    wall_s: float
    """From the first request to the last answer."""
    cpu_s: float
    """Of the client itself: whether it was the bottleneck."""


class Sample(msgspec.Struct, frozen=True):
    """One round of one way at one level."""

    way: str
    clients: int
    round: int
    tokens: int
    streams: int
    wall_s: float
    client_cpu_s: float
    ttfts_s: list[float]
    cpu_s: float | None = None
    """Of the relay's processes; None where there is no relay."""
    path_cpu_s: float | None = None
    """The same with what else the way needs: ingress and passes; None where nothing else is."""
