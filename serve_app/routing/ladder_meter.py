"""What one router replica sees of the ladder's rungs: counts and times of the last seconds.

Telling it of a request costs a few microseconds and never more; what is kept is bounded whatever
the rate. Times are handed in, from one clock.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from serve_app.domain.observation import Observation
from serve_app.domain.units import BP_TOTAL
from serve_app.routing.ladder import Gate, GateReadings, LadderRules, LadderState
from serve_app.routing.window import WindowedQuantiles

_DEPTH_SLOT_S = 0.05
_DEPTH_SLOTS = 4096
"""Depths of the last 205 s: how many were in flight when a request began that ends now."""
_MOST_ANSWERS = 512
_SLOW_DEPTH = 0.1
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class _Answer:
    began_s: float
    ended_s: float
    depth: int | None
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
    def __init__(self, rules: LadderRules) -> None:
        self.in_flight = 0
        self.peak = 0
        self.started = 0
        self.ttft = _Times(rules.ttft_p95_s, rules.window_s)
        self.tpot = _Times(rules.tpot_p95_s, rules.window_s)
        self._depths = [(-1, 0)] * _DEPTH_SLOTS

    def start(self, now_s: float) -> None:
        self.started += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        slot = int(now_s / _DEPTH_SLOT_S)
        self._depths[slot % _DEPTH_SLOTS] = (slot, self.in_flight)

    def depth_at(self, began_s: float) -> int | None:
        """In flight when a request began then; None where that is too long ago to be known."""
        slot = int(began_s / _DEPTH_SLOT_S)
        for near in (slot, slot + 1, slot - 1):  # the two clocks of a request may differ a little
            known, depth = self._depths[near % _DEPTH_SLOTS]
            if known == near:
                return depth
        return None


@dataclass(frozen=True, slots=True)
class _Interval:
    """What reached each gate between two readings."""

    end_s: float
    length_s: float
    offered: tuple[float, ...]
    wanted: tuple[float, ...]
    turned: tuple[float, ...]
    taken: tuple[float, ...]
    peaks: tuple[int, ...]


class LadderMeter:
    """Counts for one ladder. Variants that are no rung of it are passed over."""

    def __init__(self, rules: LadderRules, now_s: float) -> None:
        self._rules = rules
        self._rungs = {name: _Rung(rules) for name in rules.rungs}
        self._routed: Counter[tuple[int, frozenset[int]]] = Counter()
        self._intervals: deque[_Interval] = deque()
        self._last_s = now_s
        self._tells_first = False

    def take_over(self, before: "LadderMeter") -> None:
        """Go on with what `before` has in flight, so that their ends are not counted below 0."""
        for name, rung in self._rungs.items():
            old = before._rungs.get(name)
            if old is not None:
                rung.in_flight = rung.peak = old.in_flight

    def routed(self, lowest: int, closed: frozenset[int]) -> None:
        """A request was given shares: `lowest` is the position of the cheapest rung that it may
        get, `closed` the gates that were at their limit."""
        self._routed[lowest, closed] += 1

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
        """Its answer ended; None: there was none. Refusals and broken answers are not timed."""
        rung = self._rungs.get(variant)
        if rung is None:
            return
        rung.in_flight = max(0, rung.in_flight - 1)
        if observation is None or observation.status >= 400 or not observation.whole:
            return
        began_s = now_s - observation.duration_s
        depth = rung.depth_at(began_s)
        if not self._tells_first:
            rung.ttft.add(observation.ttft_s, began_s, depth, now_s)
        if observation.tpot_s is not None:
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
        return tuple(self._gate(i, gate, now_s) for i, gate in enumerate(state.gates))

    def _close_interval(self, state: LadderState, now_s: float) -> None:
        offered, wanted, turned, taken = ([0.0] * len(state.gates) for _ in range(4))
        for (lowest, closed), count in self._routed.items():
            reach = float(count)
            for index in range(min(lowest, len(state.gates))):
                keeps = reach * state.gates[index].keep_bp / BP_TOTAL
                offered[index] += reach
                wanted[index] += keeps
                if index in closed:
                    turned[index] += keeps
                else:
                    taken[index] += keeps
                    reach -= keeps
        self._routed.clear()
        peaks = []
        for gate in state.gates:
            rung = self._rungs[gate.variant]
            peaks.append(rung.peak)
            rung.peak = rung.in_flight
        self._intervals.append(
            _Interval(
                end_s=now_s,
                length_s=now_s - self._last_s,
                offered=tuple(offered),
                wanted=tuple(wanted),
                turned=tuple(turned),
                taken=tuple(taken),
                peaks=tuple(peaks),
            )
        )
        self._last_s = now_s
        while self._intervals[0].end_s <= now_s - self._rules.window_s:
            self._intervals.popleft()

    def _gate(self, index: int, gate: Gate, now_s: float) -> GateReadings:
        recent = [i for i in self._intervals if i.end_s > now_s - self._rules.react_s]
        recent_s = sum(each.length_s for each in recent)
        rung = self._rungs[gate.variant]
        told = [times.since(gate.limit_since_s, now_s) for times in (rung.ttft, rung.tpot)]
        answers = max(told, key=_slow_share)
        slow = [each for each in answers if each.part > 1]
        wanted = _sum(each.wanted[index] for each in recent)
        taken = _sum(each.taken[index] for each in recent)
        ttft_s, tpot_s = self.p95s(gate.variant, now_s)
        return GateReadings(
            in_flight=rung.in_flight,
            peak_in_flight=max(each.peaks[index] for each in self._intervals),
            offered=_sum(each.offered[index] for each in self._intervals),
            wanted=wanted,
            turned=_sum(each.turned[index] for each in recent),
            turned_in_window=_sum(each.turned[index] for each in self._intervals),
            taken_per_s=taken / recent_s if recent_s > 0 and wanted else None,
            n_answers=len(answers),
            n_slow=len(slow),
            slow_depth=_rank([a.depth for a in slow if a.depth is not None], _SLOW_DEPTH),
            worst=max((w for w in map(_p95, told) if w is not None), default=None),
            ttft_p95_s=ttft_s,
            tpot_p95_s=tpot_s,
            window_s=sum(each.length_s for each in self._intervals),
        )


def _slow_share(answers: Sequence[_Answer]) -> tuple[float, int]:
    slow = sum(each.part > 1 for each in answers)
    return (slow / len(answers) if answers else 0.0, len(answers))


def _p95(answers: Sequence[_Answer]) -> float | None:
    return _rank([each.part for each in answers], 0.95)


def _rank(values: Sequence[Number], p: float) -> Number | None:
    """The nearest-rank quantile; None without values."""
    return sorted(values)[math.ceil(p * len(values)) - 1] if values else None


def _sum(values: Iterable[float]) -> float:
    return sum(values, 0.0)
