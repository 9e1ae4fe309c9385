"""What one router replica sees of the ladder's rungs: counts and times of the last seconds.

Telling it of a request costs a few microseconds and never more; what is kept is bounded whatever
the rate. Times are handed in, from one clock.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from serve_app.domain.observation import Observation
from serve_app.domain.units import BP_TOTAL
from serve_app.routing.ladder import GateReadings, LadderRules, LadderState, is_missed
from serve_app.routing.window import WindowedQuantiles

_BEGIN_SLOT_S = 0.05
_BEGIN_SLOTS = 4096
"""Depths of the last 205 s: how many were in flight when a request began that ends now."""
_MOST_ANSWERS = 512
_SLOW_DEPTH = 0.1
"""Slow requests begin deeper than this part of them did."""
_RECENT = 0.05
"""Weight of one answer in the running mean of durations."""
_MOST_EVIDENCE_S = 120.0
_FULL = 0.75
"""A rung is full while this part of its limit is in flight."""
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class _Answer:
    began_s: float
    ended_s: float
    depth: int | None
    """In flight on its rung: for a TTFT when it began, for a TPOT on average."""
    part: float
    """Of its limit: above 1 it was too slow."""


class _Times:
    """One latency of one rung against its limit (None: no limit, only told)."""

    def __init__(self, limit_s: float | None, window_s: float) -> None:
        self._limit_s, self._window_s = limit_s, window_s
        self._quantiles = WindowedQuantiles(window_s)
        self._answers: deque[_Answer] = deque(maxlen=_MOST_ANSWERS)

    def add(self, value_s: float, began_s: float, depth: int | None, now_s: float) -> None:
        self._quantiles.add(value_s, now_s)
        if self._limit_s is not None:
            self._answers.append(_Answer(began_s, now_s, depth, value_s / self._limit_s))

    def p95(self, now_s: float) -> float | None:
        return self._quantiles.quantile(0.95, now_s)

    def since(self, began_s: float, now_s: float) -> list[_Answer]:
        """Answers in the window to requests that began at `began_s` or later."""
        oldest_s = now_s - self._window_s
        return [a for a in self._answers if a.ended_s >= oldest_s and a.began_s >= began_s]


class _Rung:
    def __init__(self, rules: LadderRules, now_s: float) -> None:
        self.in_flight = 0
        self.peak = self.at_first = 0
        """In flight since they were last read: the most, and then."""
        self.moved_here = self.started = self.ended = 0
        """Since they were last read; `moved_here`: of the started, those that the ladder sent."""
        self.ttft = _Times(rules.ttft_p95_s, rules.window_s)
        self.tpot = _Times(rules.tpot_p95_s, rules.window_s)
        self.duration_s: float | None = None
        """Running mean of its answers."""
        self._area, self._area_at_s = 0.0, now_s
        """Integral of `in_flight` over time, and up to when."""
        self._area_read = 0.0
        self._begins = [(-1, 0, 0.0)] * _BEGIN_SLOTS

    def start(self, now_s: float) -> None:
        self._advance(now_s)
        self.started += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        slot = int(now_s / _BEGIN_SLOT_S)
        self._begins[slot % _BEGIN_SLOTS] = (slot, self.in_flight, self._area)

    def end(self, now_s: float) -> None:
        self._advance(now_s)
        self.ended += 1
        self.in_flight = max(0, self.in_flight - 1)

    def _advance(self, now_s: float) -> None:
        self._area += self.in_flight * (now_s - self._area_at_s)
        self._area_at_s = now_s

    def read(self, now_s: float) -> tuple[int, int, int, int, float]:
        """Peak, at first, started past the gate, ended, and the integral of in flight over time:
        since the last call."""
        self._advance(now_s)
        area = self._area - self._area_read
        seen = (self.peak, self.at_first, self.started - self.moved_here, self.ended, area)
        self.peak = self.at_first = self.in_flight
        self.moved_here = self.started = self.ended = 0
        self._area_read = self._area
        return seen

    def depth_at(self, began_s: float) -> int | None:
        """In flight when a request began then; None where that is too long ago to be known."""
        begin = self._begin(began_s)
        return None if begin is None else begin[0]

    def mean_depth_since(self, began_s: float, now_s: float) -> int | None:
        """In flight on average since a request began then; None likewise."""
        begin = self._begin(began_s)
        if begin is None or now_s <= began_s:
            return None
        return round((self._area - begin[1]) / (now_s - began_s))

    def _begin(self, began_s: float) -> tuple[int, float] | None:
        slot = int(began_s / _BEGIN_SLOT_S)
        for near in (slot, slot + 1, slot - 1):  # the two clocks of a request may differ a little
            known, depth, area = self._begins[near % _BEGIN_SLOTS]
            if known == near:
                return depth, area
        return None


@dataclass(frozen=True, slots=True)
class _Interval:
    """What reached one gate, and what its rung did, between two readings."""

    end_s: float
    length_s: float
    offered: float
    wanted: float
    turned: float
    peak: int
    is_draining: bool
    """More in flight than the limit, here or at a gate above: what is turned away meanwhile tells
    of the queue from before, not of the load."""
    at_first: int
    past: int
    """Started without having come through the gate: pinned requests, say."""
    ended: int
    area: float
    """Requests in flight times seconds."""


class LadderMeter:
    """Counts for one ladder. Variants that are no rung of it are passed over."""

    def __init__(self, rules: LadderRules, now_s: float) -> None:
        self._rules = rules
        self._rungs = {name: _Rung(rules, now_s) for name in rules.rungs}
        self._routed: Counter[tuple[int, frozenset[int]]] = Counter()
        self._intervals: list[deque[_Interval]] = [deque() for _ in rules.rungs[:-1]]
        self._last_s = now_s
        self._tells_first = False

    def take_over(self, before: "LadderMeter") -> None:
        """Go on with what `before` has in flight, so that their ends are not counted below 0."""
        for name, rung in self._rungs.items():
            old = before._rungs.get(name)
            if old is not None:
                rung.in_flight = rung.peak = rung.at_first = old.in_flight

    def routed(self, variant: str, lowest: int, closed: frozenset[int]) -> None:
        """The ladder sent a request to `variant`; `lowest` is the position of the cheapest rung
        that it might have got, `closed` are the gates that were at their limit."""
        self._routed[lowest, closed] += 1
        self._rungs[variant].moved_here += 1

    def started(self, variant: str, now_s: float) -> None:
        """A request was sent to `variant`."""
        rung = self._rungs.get(variant)
        if rung is not None:
            rung.start(now_s)

    def first_byte(self, variant: str, ttft_s: float, now_s: float) -> None:
        """Its answer began. Once this was called, `ended` takes no TTFT: it came here, earlier."""
        self._tells_first = True
        rung = self._rungs.get(variant)
        if rung is not None:
            began_s = now_s - ttft_s
            rung.ttft.add(ttft_s, began_s, rung.depth_at(began_s), now_s)

    def ended(self, observation: Observation | None, variant: str, now_s: float) -> None:
        """Its answer ended; None: there was none, or none to learn from. Refusals and broken
        answers are not timed; one that was no stream has a duration, but no TTFT and no TPOT."""
        rung = self._rungs.get(variant)
        if rung is None:
            return
        rung.end(now_s)
        if observation is None or observation.status >= 400 or not observation.whole:
            return
        known_s, took_s = rung.duration_s, observation.duration_s
        rung.duration_s = took_s if known_s is None else known_s + _RECENT * (took_s - known_s)
        began_s = now_s - took_s
        if not self._tells_first and observation.ttft_s is not None:
            rung.ttft.add(observation.ttft_s, began_s, rung.depth_at(began_s), now_s)
        if observation.tpot_s is not None:
            depth = rung.mean_depth_since(began_s, now_s)
            rung.tpot.add(observation.tpot_s, began_s, depth, now_s)

    def in_flight(self, variant: str) -> int:
        """Requests in flight on a rung now."""
        return self._rungs[variant].in_flight

    def p95s(self, variant: str, now_s: float) -> tuple[float | None, float | None]:
        """P95 of TTFT and of TPOT in the window, in seconds."""
        rung = self._rungs[variant]
        return rung.ttft.p95(now_s), rung.tpot.p95(now_s)

    def readings(self, state: LadderState, now_s: float) -> tuple[GateReadings, ...]:
        """One per gate of `state`, which must be the state since the last call."""
        self._close_interval(state, now_s)
        return tuple(self._gate(state, i, now_s) for i, gate in enumerate(state.gates))

    def _close_interval(self, state: LadderState, now_s: float) -> None:
        n = len(state.gates)
        offered, wanted, turned = [0.0] * n, [0.0] * n, [0.0] * n
        for (lowest, closed), count in self._routed.items():
            reach = float(count)
            for index in range(min(lowest, n)):
                keeps = reach * state.gates[index].keep_bp / BP_TOTAL
                offered[index] += reach
                wanted[index] += keeps
                if index in closed:
                    turned[index] += keeps
                else:
                    reach -= keeps
        self._routed.clear()
        is_draining = False
        for index, (gate, intervals) in enumerate(zip(state.gates, self._intervals, strict=True)):
            peak, at_first, past, ended, area = self._rungs[gate.variant].read(now_s)
            is_draining |= gate.limit is not None and peak > gate.limit
            intervals.append(
                _Interval(
                    end_s=now_s,
                    length_s=now_s - self._last_s,
                    offered=offered[index],
                    wanted=wanted[index],
                    turned=turned[index],
                    peak=peak,
                    is_draining=is_draining,
                    at_first=at_first,
                    past=past,
                    ended=ended,
                    area=area,
                )
            )
            while intervals[0].end_s <= now_s - _MOST_EVIDENCE_S:
                intervals.popleft()
        self._last_s = now_s

    def _gate(self, state: LadderState, index: int, now_s: float) -> GateReadings:
        gate, known = state.gates[index], self._intervals[index]
        seen = [each for each in known if each.end_s > now_s - self._rules.window_s]
        moved_s = max(each.moved_at_s for each in state.gates[: index + 1])
        since_s = max(moved_s, now_s - self._evidence_s(gate.variant))
        recent = [each for each in known if each.end_s > since_s and not each.is_draining]
        # by how full it was at first: an end makes it less full, and would leave itself uncounted
        last = seen[-1]
        is_full = gate.limit is not None and last.at_first >= _FULL * gate.limit
        evidence_s = sum(each.length_s for each in recent)
        rung = self._rungs[gate.variant]
        told = [times.since(gate.limit_since_s, now_s) for times in (rung.ttft, rung.tpot)]
        deep, slow, depth = max(map(_deep, told), key=lambda found: found[1])
        ttft_s, tpot_s = self.p95s(gate.variant, now_s)
        return GateReadings(
            in_flight=rung.in_flight,
            peak_in_flight=max(each.peak for each in seen),
            offered=sum(each.offered for each in seen),
            duration_s=rung.duration_s,
            evidence_s=evidence_s,
            evidence_offered=sum(each.offered for each in recent),
            mean_in_flight=sum(each.area for each in recent) / evidence_s if evidence_s else 0.0,
            wanted=sum(each.wanted for each in recent),
            turned=sum(each.turned for each in recent),
            turned_in_window=sum(each.turned for each in seen),
            full_s=last.length_s if is_full else 0.0,
            full_ended=max(0, last.ended - last.past) if is_full else 0,
            n_answers=max(map(len, told)),
            n_deep=deep,
            n_slow=slow,
            slow_depth=depth,
            below_misses=any(self._misses(name, now_s) for name in state.rungs[index + 1 :]),
            worst=max((w for w in map(_p95, told) if w is not None), default=None),
            ttft_p95_s=ttft_s,
            tpot_p95_s=tpot_s,
            window_s=sum(each.length_s for each in seen),
        )

    def _evidence_s(self, variant: str) -> float:
        """How far back a move down looks: over the time that some answers took, at least."""
        duration_s = self._rungs[variant].duration_s or 0.0
        return max(self._rules.window_s, min(3 * duration_s, _MOST_EVIDENCE_S))

    def _misses(self, variant: str, now_s: float) -> bool:
        """Whether a rung misses the SLO now, whatever the depth at which its requests began."""
        rung, since_s = self._rungs[variant], now_s - self._rules.window_s
        told = (times.since(since_s, now_s) for times in (rung.ttft, rung.tpot))
        return any(is_missed(sum(a.part > 1 for a in each), len(each)) for each in told)


def _deep(answers: Sequence[_Answer]) -> tuple[int, int, int | None]:
    """How many answers began as deep as slow ones do, how many were slow, and that depth."""
    slow = [each.depth for each in answers if each.part > 1 and each.depth is not None]
    depth = _rank(slow, _SLOW_DEPTH)
    if depth is None:
        return 0, 0, None
    deep = [each for each in answers if each.depth is not None and each.depth >= depth]
    return len(deep), sum(each.part > 1 for each in deep), depth


def _p95(answers: Sequence[_Answer]) -> float | None:
    return _rank([each.part for each in answers], 0.95)


def _rank(values: Sequence[Number], p: float) -> Number | None:
    """The nearest-rank quantile; None without values."""
    return sorted(values)[math.ceil(p * len(values)) - 1] if values else None
