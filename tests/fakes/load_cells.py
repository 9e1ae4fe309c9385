"""Cells of load tests with records made by hand, or by a simulated server."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

from loadtests.analyse.whole import WholeCell
from loadtests.campaign import Campaign, parse_campaign
from loadtests.records.record import CellPlan, CellRun, RequestRecord

MS = 1_000_000
S = 1_000_000_000


def campaign_of(variants: Sequence[str] = ("a",), **changes: Any) -> Campaign:
    """A campaign with one stage `s` of 10 requests/s over 2 s, or what `changes` say."""
    fields = {
        "target": {"model": "m", "variants": list(variants)},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [4, 4]},
        "stages": [{"name": "s", "kind": "constant", "rate_per_s": 10, "duration_s": 2}],
        "warmup_s": 1,
        "cooldown_s": 1,
        "slo": {"ttft_ms": 60, "tpot_ms": 20},
    }
    merged = {key: value for key, value in (fields | changes).items() if value is not None}
    return parse_campaign(merged, "test")


def plan_of(index: int = 0, **changes: Any) -> CellPlan:
    """A cell of 40 requests, 100 ms apart: 10 of warm-up, 20 measured, 10 of cool-down."""
    fields = {
        "index": index,
        "stage": "s",
        "block": 0,
        "repeat": 0,
        "variant": "a",
        "rate_per_s": 10.0,
        "concurrency": None,
        "window_ns": (S, 3 * S),
        "end_ns": 4 * S,
        "n_measured": 20,
        "start_ns": 0,
    }
    return CellPlan(**(fields | changes))


def record_of(index: int = 0, **changes: Any) -> RequestRecord:
    """Sent 2 ms late, first token 50 ms after the plan, then 3 tokens 10 ms apart."""
    t = index * 100 * MS
    fields = {
        "cell": 0,
        "index": index,
        "phase": "warmup" if t < S else "measured" if t < 3 * S else "cooldown",
        "variant": "a",
        "t_sched_ns": t,
        "t_send_ns": t + 2 * MS,
        "t_first_ns": t + 50 * MS,
        "t_last_ns": t + 80 * MS,
        "t_end_ns": t + 81 * MS,
        "event_us": (0, 10_000, 20_000, 30_000),
        "status": 200,
        "max_tokens": 4,
        "output_tokens": 4,
    }
    return RequestRecord(**(fields | changes))


def failed_of(index: int, error: str, **changes: Any) -> RequestRecord:
    """A request without an answer."""
    unset = dict.fromkeys(("t_first_ns", "t_last_ns", "output_tokens"))
    return record_of(index, error=error, event_us=(), **(unset | changes))


def run_of(records: Sequence[RequestRecord], **changes: Any) -> CellRun:
    """What the pacer says of a cell with these records, in accord with them."""
    stays = sum(r.t_end_ns - r.t_send_ns for r in records if r.t_send_ns is not None)
    fields = {
        "cell": 0,
        "worker": 0,
        "n_records": len(records),
        "t_end_ns": 4 * S,
        "cpu_s": 0.4,
        "in_flight_ns": stays,
        "peak_in_flight": 1,
    }
    return CellRun(**(fields | changes))


def cell_of(
    ttft_ms: Iterable[float | None], *, index: int = 0, tpot_ms: float = 10.0, **plan: Any
) -> WholeCell:
    """A whole cell of measured requests with these TTFTs, 4 tokens each; None has failed."""
    records = []
    for i, ttft in enumerate(ttft_ms):
        t, where = S + i * MS, {"cell": index, "phase": "measured"}
        where["variant"] = plan.get("variant", "a")
        where["t_sched_ns"] = where["t_send_ns"] = t
        if ttft is None:
            records.append(failed_of(i, "http_5xx", t_end_ns=t + MS, **where))
            continue
        first, gap = t + round(ttft * MS), round(tpot_ms * MS)
        stamps = {"t_first_ns": first, "t_last_ns": first + 3 * gap, "t_end_ns": first + 3 * gap}
        events = tuple(k * gap // 1000 for k in range(4))
        records.append(record_of(i, event_us=events, **stamps, **where))
    plan = {"n_measured": len(records)} | plan
    run = run_of(records, cell=index)
    return WholeCell(plan_of(index, **plan), (run,), tuple(records))


def queue(offsets_ns: Sequence[int], service_per_s: float, rng: random.Random) -> list[int]:
    """Times at which a single server with exponential service is done with each arrival."""
    done, free = [], 0
    for offset in offsets_ns:
        free = max(free, offset) + round(rng.expovariate(service_per_s) * S)
        done.append(free)
    return done
