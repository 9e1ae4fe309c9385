"""One step of the precision ladder: readings and state in, new state out. Pure.

Two loops, one inside the other:

- *Limit.* Where more than 5 % of the answers that began at some depth miss the SLO, and not by
  chance, the limit becomes less than that depth. While requests are turned away and the answers
  are well within the SLO, it grows, for a while not to a depth that was too much. A rung that has
  taught nothing yet gets the limit of the rung above it, which is dearer, so that one burst need
  not miss the SLO once per rung. Latency is a lagging signal, as a request waits before it is
  slow; the number in flight, held against a limit that latency has taught, is not.
- *Share.* A gate at its limit turns requests away one by one, at once. Where it turns away more
  than a rung that is loaded just to its limit would (Erlang's loss formula), the overload is not
  chance, and the gate keeps less, so that sessions move once and not to and fro. What is turned
  away while a queue from before drains does not count, and a move down takes the evidence of more
  time than an answer takes: the gates do the work meanwhile. It keeps more again only when the
  rate that reaches it would leave the rung at 85 % of what it was seen to carry, or no more than
  half full on average, all with the statistical doubt of their counts on the safe side. This margin
  is the hysteresis. The best rung comes back first: while it does not keep all, those below it do
  not move up, or the whole ladder would swing; unless a rung below misses the SLO, which a rung
  with room above it can help.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from serve_app.domain.units import BP_TOTAL
from serve_app.routing.ladder import (
    Gate,
    GateReadings,
    LadderRules,
    LadderState,
    is_missed,
)

_GROW, _SHRINK, _SHRINK_FAST, _SHRINK_MOST = 1.1, 0.95, 0.8, 0.6
_BLATANT = 0.25
"""A share of slow answers above which a limit shrinks fast."""
_REMEMBERED_WINDOWS = 12
_RELAXED = 0.8
"""A limit grows while the P95 is at most this part of what it may be."""
_EXCESS = 1.2
"""How many times Erlang's loss a gate turns away before its share moves."""
_ANSWERS_LONG = 1.5
"""How many answers' time a move down looks at, at least."""
_LEAST_WANTED, _SIGMAS = 10, 3
"""So many requests, and so many standard deviations above chance, move a share."""
_FAR_FROM_FULL = 0.75
_SETTLED_WINDOWS, _HELPING_WINDOWS = 6, 2
"""After so many windows without a move a rung need not wait for those above it; to help one below
that misses the SLO, sooner."""
_MEMORY_S = 60.0
"""Seconds at its limit over which what a rung carries is averaged."""
_Z = 1.645
"""One-sided 95 % of the normal distribution."""


def step(
    rules: LadderRules, state: LadderState, readings: Sequence[GateReadings], now_s: float
) -> LadderState:
    """The state after `readings`, one per gate. The same arguments give the same state."""
    gates: list[Gate] = []
    reasons = []
    last_move_s = max(gate.moved_at_s for gate in state.gates)
    calm_windows = (now_s - last_move_s) / rules.window_s
    for before, seen in zip(state.gates, readings, strict=True):
        gate = _with_capacity(before, seen)
        gate, why_limit = _with_limit(rules, gate, seen, now_s)
        if gate.limit is None and gates and gates[-1].limit is not None:
            gate = replace(gate, limit=gates[-1].limit, limit_since_s=now_s)
        above_keep_all = all(above.keep_bp == BP_TOTAL for above in gates)
        may_rise = (
            above_keep_all
            or calm_windows >= _SETTLED_WINDOWS
            or (calm_windows >= _HELPING_WINDOWS and _can_help(gate, seen))
        )
        gate, why_keep = _with_keep(rules, gate, seen, now_s, may_rise)
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
    kept = math.exp(-seen.full_s / _MEMORY_S)
    return replace(
        gate,
        full_s=gate.full_s * kept + seen.full_s,
        full_ended=gate.full_ended * kept + seen.full_ended,
    )


def _with_limit(
    rules: LadderRules, gate: Gate, seen: GateReadings, now_s: float
) -> tuple[Gate, str]:
    if seen.slow_depth is not None and is_missed(seen.n_slow, seen.n_deep):
        limit = max(1, seen.slow_depth - 1)
        if gate.limit is not None:
            by = _SHRINK_FAST if seen.n_slow > _BLATANT * seen.n_deep else _SHRINK
            most = max(1, math.ceil(gate.limit * by) - 1)
            limit = max(min(limit, most), math.floor(gate.limit * _SHRINK_MOST), 1)
        if limit == gate.limit:
            return gate, ""
        answers = f"{seen.n_slow} of {seen.n_deep} answers at {seen.slow_depth} in flight or more"
        why = f"{answers} missed the SLO, so at most {limit}"
        missed = max(limit + 1, seen.slow_depth)
        return replace(gate, limit=limit, limit_since_s=now_s, missed=missed), why
    if gate.limit is None or not seen.turned_in_window or seen.worst is None:
        return gate, ""
    is_due = now_s - gate.limit_since_s >= rules.window_s and seen.n_answers >= rules.min_answers
    if seen.worst > _RELAXED or not is_due:
        return gate, ""
    limit = max(gate.limit + 1, math.floor(gate.limit * _GROW))
    limit = min(limit, (rules.max_in_flight or {}).get(gate.variant, limit))
    if now_s - gate.limit_since_s < _REMEMBERED_WINDOWS * rules.window_s:
        limit = min(limit, (gate.missed or limit + 1) - 1)
    if limit <= gate.limit:
        return gate, ""
    return replace(gate, limit=limit, limit_since_s=now_s), f"well within the SLO, up to {limit}"


def _with_keep(
    rules: LadderRules, gate: Gate, seen: GateReadings, now_s: float, may_rise: bool
) -> tuple[Gate, str]:
    lower = _lower(rules, gate, seen, now_s)
    if lower is not None and lower < gate.keep_bp:
        why = f"at its limit of {gate.limit}, keeps {lower} instead of {gate.keep_bp} bp"
        return replace(gate, keep_bp=lower, moved_at_s=now_s), why
    higher = _higher(rules, gate, seen, now_s) if may_rise else None
    if higher is not None and higher > gate.keep_bp:
        why = f"has room again, keeps {higher} instead of {gate.keep_bp} bp"
        return replace(gate, keep_bp=higher, moved_at_s=now_s), why
    return gate, ""


def _lower(rules: LadderRules, gate: Gate, seen: GateReadings, now_s: float) -> int | None:
    """What to keep where chance alone would not turn so many away; None: no reason to move."""
    # an engine that has just been filled finishes nothing for as long as an answer takes
    is_due = seen.duration_s is not None and seen.evidence_s >= max(
        rules.down_dwell_s, _ANSWERS_LONG * seen.duration_s
    )
    if gate.limit is None or seen.wanted < _LEAST_WANTED or not is_due:
        return None
    lost = seen.turned / seen.wanted
    by_chance = erlang_loss(gate.limit)
    doubt = _SIGMAS * math.sqrt(by_chance * (1 - by_chance) / seen.wanted)
    if lost < _EXCESS * by_chance + doubt:
        return None
    # what it takes when it turns no more away than by chance, and a little less: it is overloaded
    kept_bp = gate.keep_bp * (1 - lost) * (1 + by_chance / 2)
    carried_per_s = gate.capacity_per_s()
    if carried_per_s is not None:
        kept_bp = max(kept_bp, BP_TOTAL * carried_per_s * seen.evidence_s / seen.evidence_offered)
    return max(round(kept_bp), gate.keep_bp - rules.down_bp, 0)


def _half_full_bp(rules: LadderRules, gate: Gate, limit: int, seen: GateReadings) -> float:
    """With which share the rung would be half full on average, by how full it is; 0: not known.

    What it carried while it was full may be long ago, and no longer true: engines that shared its
    device have gone quiet, say, or it has more replicas.
    """
    is_due = seen.evidence_s >= max(rules.up_dwell_s, seen.duration_s or 0.0)
    taken = seen.wanted - seen.turned
    if not is_due or taken <= 0 or not seen.mean_in_flight:
        return 0.0
    most = seen.wanted + _Z * math.sqrt(seen.wanted) + 1
    return gate.keep_bp * limit / 2 / (seen.mean_in_flight * most / taken)


def _can_help(gate: Gate, seen: GateReadings) -> bool:
    """Whether a cheaper rung misses the SLO while this one has been far from full."""
    return seen.below_misses and (
        gate.limit is None or seen.peak_in_flight <= _FAR_FROM_FULL * gate.limit
    )


def _higher(rules: LadderRules, gate: Gate, seen: GateReadings, now_s: float) -> int | None:
    """What the rung could keep now; None: no reason to move."""
    if gate.keep_bp == BP_TOTAL or now_s - gate.moved_at_s < rules.up_dwell_s or not seen.window_s:
        return None
    most_per_s = (seen.offered + _Z * math.sqrt(seen.offered) + 1) / seen.window_s
    room_bp = 0.0
    carried_per_s = gate.capacity_per_s(_Z)
    if carried_per_s is not None:
        # where a cheaper rung misses the SLO, no room is left unused for the sake of calm
        clear_bp = BP_TOTAL if _can_help(gate, seen) else rules.clear_bp
        room_bp = clear_bp * carried_per_s / most_per_s
    if gate.limit is None or seen.peak_in_flight <= gate.limit / 2:
        # it was never even half full: whatever its capacity was thought to be, there is more
        room_bp = max(room_bp, gate.keep_bp + rules.up_bp)
    else:
        room_bp = max(room_bp, _half_full_bp(rules, gate, gate.limit, seen))
    wanted_bp = min(room_bp, gate.keep_bp + rules.up_bp, BP_TOTAL)
    worth_bp = gate.keep_bp * (BP_TOTAL + rules.hysteresis_bp) / BP_TOTAL
    return round(wanted_bp) if wanted_bp >= min(BP_TOTAL, worth_bp) else None
