"""Where the variants of one Serve instance meet: each reports, all are decided on together.

Serve asks each variant's policy by itself, one after the other, in the one process of its
controller. This module lives there once (policies are pickled by value, what they import is not),
so its `LEDGER` sees every variant. After a controller's restart it is filled again by the first
round of reports; nothing is given or taken before that.
"""

import logging
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from serve_app.scaling.load import Memory, Observation, Targets, Wish, wish
from serve_app.scaling.share import Claim, Grant, share

logger = logging.getLogger("ray.serve")

DECIDE_EVERY_S = 1.0
"""Serve's control loop asks ten times a second; engines do not start that fast."""


@dataclass(frozen=True)
class Stake:
    """What a variant brings to the common budget."""

    gpu: str
    """GPU type, as the catalogue names it."""
    size_bp: int
    gpus: int
    weight: float
    budget: Mapping[str, int]
    """GPUs per type that all variants together may take; names at least `gpu`."""


@dataclass
class _Entry:
    owner: "weakref.ref[object]"
    stake: Stake | None
    round: int
    seen: Observation
    wish: Wish
    memory: Memory
    grant: Grant | None = None
    granted_at: int = 0
    """The target that the grant was decided on."""


class Ledger:
    """The variants' last reports, and what was decided on them."""

    def __init__(self, decide_every_s: float = DECIDE_EVERY_S) -> None:
        self._decide_every_s = decide_every_s
        self._entries: dict[str, _Entry] = {}
        self._round = 0
        self._decided_s = float("-inf")

    def is_due(self, name: str, owner: object, now_s: float) -> bool:
        """Whether the variant's next report is read; called at every turn of the control loop."""
        entry = self._entries.get(name)
        if entry is None or entry.owner() is not owner:
            return True
        if entry.round == self._round:  # it comes for the second time: a new round begins
            self._round += 1
        entry.round = self._round
        return now_s - entry.seen.now_s >= self._decide_every_s

    def report(
        self, name: str, owner: object, stake: Stake | None, targets: Targets, seen: Observation
    ) -> None:
        """Take in what was seen of a variant. It is forgotten when `owner` is."""
        entry = self._entries.get(name)
        if entry is None or entry.owner() is not owner:
            memory = entry.memory if entry is not None else Memory()
            wished, memory = wish(seen, targets, memory)
            owner_ref = weakref.ref(owner)
            self._entries[name] = _Entry(owner_ref, stake, self._round, seen, wished, memory)
            return
        entry.seen, entry.stake = seen, stake
        entry.wish, entry.memory = wish(seen, targets, entry.memory)

    def replicas(self, name: str, target: int) -> int:
        """How many replicas the variant may have.

        `target`, what Serve aims at now, stands until all variants have reported, and where Serve
        has changed it since the last decision (a sleeper that wakes, a new deployment).
        """
        entry = self._entries[name]
        now_s = entry.seen.now_s
        if self._round >= 1 and now_s - self._decided_s >= self._decide_every_s:
            self._decided_s = now_s
            self._decide(now_s)
        if entry.grant is None or target not in (entry.granted_at, entry.grant.replicas):
            return target
        return entry.grant.replicas

    def _decide(self, now_s: float) -> None:
        # Two rounds of patience: settings that change bring a new owner, after the old is gone.
        missed = {name for name, entry in self._entries.items() if entry.round < self._round - 1}
        for name in [name for name in missed if self._entries[name].owner() is None]:
            del self._entries[name]
        for entry in self._entries.values():
            if self._is_waking(entry):
                entry.wish = Wish(max(1, entry.seen.target), max(1.0, entry.wish.demand), "woken")
                entry.memory = replace(entry.memory, idle_since_s=now_s)
        pools = _pools(self._entries.values())
        claims: dict[str, list[Claim]] = {gpu: [] for gpu in pools}
        for name, entry in self._entries.items():
            if entry.stake is not None:
                claims[entry.stake.gpu].append(_claim(name, entry, entry.stake))
        grants = {
            name: grant
            for gpu, asked in claims.items()
            for name, grant in share(pools[gpu], asked).items()
        }
        for name, entry in self._entries.items():
            before = entry.grant
            entry.grant = grants.get(name, Grant(entry.wish.replicas, 0))
            entry.granted_at = entry.seen.target
            if before != entry.grant:
                _log(name, entry, entry.grant)

    def _is_waking(self, entry: _Entry) -> bool:
        """Serve does not ask the policy of a variant without replicas while requests wait for it:
        it starts one by itself, or all that it aimed at. One that misses a whole round is waking.
        """
        return entry.seen.replicas == 0 and entry.round < self._round - 1


LEDGER = Ledger()
"""The controller's."""


def _pools(entries: Iterable[_Entry]) -> dict[str, int]:
    """The budget per GPU type; where variants state different ones, the smallest holds."""
    pools: dict[str, int] = {}
    for stake in (entry.stake for entry in entries if entry.stake is not None):
        for gpu, n_gpus in stake.budget.items():
            pools[gpu] = min(n_gpus, pools.get(gpu, n_gpus))
    return pools


def _claim(name: str, entry: _Entry, stake: Stake) -> Claim:
    return Claim(
        name=name,
        size_bp=stake.size_bp,
        gpus=stake.gpus,
        weight=stake.weight,
        minimum=entry.seen.minimum,
        wished=entry.wish.replicas,
        held=entry.seen.target,
        demand=entry.wish.demand,
    )


def _log(name: str, entry: _Entry, grant: Grant) -> None:
    missing = f"; {grant.short} short: the GPU budget is used up" if grant.short else ""
    logger.info(
        "%s: %d replicas of %d, demand %.2f: %s%s",
        name,
        grant.replicas,
        entry.seen.target,
        entry.wish.demand,
        entry.wish.reason,
        missing,
    )
