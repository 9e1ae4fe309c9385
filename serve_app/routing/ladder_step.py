"""One step of the precision ladder: readings and state in, new state out. Pure.

Two loops, one inside the other:

- *Limit.* While more than 5 % of a rung's answers miss the SLO, its limit becomes the depth at
  which slow requests began, or a fifth less. While requests are turned away and the answers are
  well within the SLO, it grows by a tenth. Latency is a lagging signal, as a request waits before
  it is slow; the number in flight, held against a limit that latency has taught, is not.
- *Share.* A gate at its limit turns requests away one by one, at once. Where it turns away more
  than a rung that is loaded just to its limit would (Erlang's loss formula), the overload is not
  chance, and the gate keeps less, so that sessions move once and not to and fro. It keeps more
  again only when the rate that reaches it, with the statistical doubt of its count added, would
  leave the rung at 85 % of what it carried at its limit. That margin is the hysteresis.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from serve_app.domain.units import BP_TOTAL
from serve_app.routing.ladder import TAIL, Gate, GateReadings, LadderRules, LadderState

_SHRINK, _GROW = 0.8, 1.1
_RELAXED = 0.8
"""A limit grows while the P95 is at most this part of what it may be."""
_EXCESS = 1.2
"""How many times Erlang's loss a gate turns away before its share moves."""
_AT_LIMIT = 0.05
"""A rung whose gate turned away this share is at its limit: what it takes is its capacity."""
_FORGET = 0.1
"""Weight of one step in the running mean of the capacity."""
_Z = 1.645
"""One-sided 95 % of the normal distribution."""


def step(
    rules: LadderRules, state: LadderState, readings: Sequence[GateReadings], now_s: float
) -> LadderState:
    """The state after `readings`, one per gate. The same arguments give the same state."""
    gates, reasons = [], []
    for gate, seen in zip(state.gates, readings, strict=True):
        gate = _with_capacity(gate, seen)
        gate, why_limit = _with_limit(rules, gate, seen, now_s)
        gate, why_keep = _with_keep(rules, gate, seen, now_s)
        gates.append(gate)
        reasons += [f"{gate.variant}: {why}" for why in (why_limit, why_keep) if why]
    moves = sum(new.keep_bp != old.keep_bp for new, old in zip(gates, state.gates, strict=True))
    return replace(
        state,
        gates=tuple(gates),
        reason="; ".join(reasons) or state.reason,
        changes=state.changes + moves,
    )


@lru_cache(maxsize=1024)
def erlang_loss(limit: int) -> float:
    """Share of requests that find `limit` servers busy when the load is `limit` (Erlang's B)."""
    loss = 1.0
    for servers in range(1, limit + 1):
        loss = limit * loss / (servers + limit * loss)
    return loss


def _with_capacity(gate: Gate, seen: GateReadings) -> Gate:
    """Learn what the rung takes per second, from the times when it is at its limit."""
    if seen.taken_per_s is None or seen.wanted <= 0 or seen.turned < _AT_LIMIT * seen.wanted:
        return gate
    known = gate.capacity_per_s
    learned = seen.taken_per_s if known is None else known + _FORGET * (seen.taken_per_s - known)
    return replace(gate, capacity_per_s=learned)


def _with_limit(
    rules: LadderRules, gate: Gate, seen: GateReadings, now_s: float
) -> tuple[Gate, str]:
    if seen.n_answers < rules.min_answers:
        return gate, ""
    if seen.n_slow > TAIL * seen.n_answers:
        found = max(1, (seen.slow_depth or 1) - 1)
        limit = found if gate.limit is None else min(found, math.floor(gate.limit * _SHRINK))
        limit = max(1, limit)
        if limit == gate.limit:
            return gate, ""
        why = f"{seen.n_slow} of {seen.n_answers} answers missed the SLO, at most {limit} in flight"
        return replace(gate, limit=limit, limit_since_s=now_s), why
    if gate.limit is None or not seen.turned_in_window or seen.worst is None:
        return gate, ""
    is_due = now_s - gate.limit_since_s >= rules.window_s
    if seen.worst > _RELAXED or not is_due:
        return gate, ""
    limit = max(gate.limit + 1, math.floor(gate.limit * _GROW))
    limit = min(limit, (rules.max_in_flight or {}).get(gate.variant, limit))
    if limit == gate.limit:
        return gate, ""
    return replace(gate, limit=limit, limit_since_s=now_s), f"well within the SLO, up to {limit}"


def _with_keep(
    rules: LadderRules, gate: Gate, seen: GateReadings, now_s: float
) -> tuple[Gate, str]:
    lower = _lower(rules, gate, seen, now_s)
    if lower is not None and lower < gate.keep_bp:
        why = f"at its limit of {gate.limit}, keeps {lower} instead of {gate.keep_bp} bp"
        return replace(gate, keep_bp=lower, moved_at_s=now_s), why
    higher = _higher(rules, gate, seen, now_s)
    if higher is not None and higher > gate.keep_bp:
        why = f"has room again, keeps {higher} instead of {gate.keep_bp} bp"
        return replace(gate, keep_bp=higher, moved_at_s=now_s), why
    return gate, ""


def _lower(rules: LadderRules, gate: Gate, seen: GateReadings, now_s: float) -> int | None:
    """What to keep where chance alone would not turn so many away; None: no reason to move."""
    is_due = now_s - gate.moved_at_s >= rules.down_dwell_s or gate.keep_bp == BP_TOTAL
    if gate.limit is None or seen.wanted < rules.min_offered or not is_due:
        return None
    lost = seen.turned / seen.wanted
    by_chance = erlang_loss(gate.limit)
    if lost < _EXCESS * by_chance + 2 * math.sqrt(by_chance * (1 - by_chance) / seen.wanted):
        return None
    kept = gate.keep_bp * (1 - lost) * (1 + by_chance / 2)
    return max(round(kept), gate.keep_bp - rules.down_bp, 0)


def _higher(rules: LadderRules, gate: Gate, seen: GateReadings, now_s: float) -> int | None:
    """What the rung could keep now; None: no reason to move."""
    if gate.keep_bp == BP_TOTAL or now_s - gate.moved_at_s < rules.up_dwell_s or not seen.window_s:
        return None
    most_per_s = (seen.offered + _Z * math.sqrt(seen.offered) + 1) / seen.window_s
    room_bp = 0.0
    if gate.capacity_per_s is not None:
        room_bp = rules.clear_bp * gate.capacity_per_s / most_per_s
    if gate.limit is None or seen.peak_in_flight <= gate.limit / 2:
        # it was never even half full: whatever its capacity was thought to be, there is more
        room_bp = max(room_bp, gate.keep_bp + rules.up_bp)
    wanted_bp = min(room_bp, gate.keep_bp + rules.up_bp, BP_TOTAL)
    is_worth_it = wanted_bp >= min(
        BP_TOTAL, gate.keep_bp * (BP_TOTAL + rules.hysteresis_bp) / BP_TOTAL
    )
    return round(wanted_bp) if is_worth_it else None
