"""Every number of a `report.json` made again from the run's raw files, by other means.

Written from the formulas in the report alone: plain dictionaries, numpy's `inverted_cdf`, scipy's
distributions; nothing of loadtests is imported. Bootstrap intervals, which no other program can
draw again, are held against scipy's distribution-free interval instead, by the caller.
"""

import itertools
import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

MS = 1e6
PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
COMPARED = (
    ("ttft_user_ms", 0.5),
    ("ttft_user_ms", 0.95),
    ("e2e_user_ms", 0.5),
    ("e2e_user_ms", 0.95),
    ("tpot_ms", 0.5),
    ("output_tokens_per_s", None),
)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def minus(after: str, before: str):
    def of(r: dict) -> float | None:
        if r.get(after) is None or r.get(before) is None:
            return None
        return (r[after] - r[before]) / MS

    return of


def tpot(r: dict) -> float | None:
    n, decode = r.get("output_tokens"), minus("t_last_ns", "t_first_ns")(r)
    return None if decode is None or n is None or n < 2 else decode / (n - 1)


def ntpot(r: dict) -> float | None:
    whole = minus("t_last_ns", "t_send_ns")(r)
    return whole / r["output_tokens"] if whole is not None and r.get("output_tokens") else None


def stall(r: dict) -> float | None:
    events = r.get("event_us", ())
    return max(np.diff(events)) / 1000 if len(events) > 1 else None


LATENCIES = {
    "ttft_user_ms": minus("t_first_ns", "t_sched_ns"),
    "ttft_service_ms": minus("t_first_ns", "t_send_ns"),
    "e2e_user_ms": minus("t_last_ns", "t_sched_ns"),
    "e2e_service_ms": minus("t_last_ns", "t_send_ns"),
    "tpot_ms": tpot,
    "ntpot_ms": ntpot,
    "stall_ms": stall,
    "lag_ms": minus("t_send_ns", "t_sched_ns"),
}


class Cell:
    def __init__(self, plan: dict, records: list[dict], runs: list[dict]) -> None:
        self.plan, self.runs = plan, runs
        self.records = sorted(records, key=lambda r: (r["t_sched_ns"], r["index"]))
        self.measured = [r for r in self.records if r["phase"] == "measured"]
        self.window_s = (plan["window_ns"][1] - plan["window_ns"][0]) / 1e9

    def values(self, name: str, *, failed: bool) -> list[float]:
        of = LATENCIES[name]
        if failed:
            found = [math.inf if r.get("error") else of(r) for r in self.measured]
        else:
            found = [of(r) for r in self.measured if name == "lag_ms" or not r.get("error")]
        return [value for value in found if value is not None]

    def tokens(self) -> float:
        start, end = self.plan["window_ns"]
        total = 0.0
        for r in self.records:
            if r.get("event_us") and r.get("output_tokens"):
                at = r["t_first_ns"] + 1000 * np.asarray(r["event_us"])
                inside = np.count_nonzero((at >= start) & (at < end))
                total += inside * r["output_tokens"] / len(at)
        return total

    def meets(self, slo: dict) -> list[bool]:
        limits = (("ttft_ms", "ttft_user_ms"), ("e2e_ms", "e2e_user_ms"), ("tpot_ms", "tpot_ms"))
        return [
            not r.get("error")
            and all(
                slo[key] is None or LATENCIES[name](r) is None or LATENCIES[name](r) <= slo[key]
                for key, name in limits
            )
            for r in self.measured
        ]


def cells_of(folder: Path) -> list[Cell]:
    records, runs = defaultdict(list), defaultdict(list)
    for r in lines(folder / "records.jsonl"):
        records[r["cell"]].append(r)
    for run in lines(folder / "runs.jsonl"):
        runs[run["cell"]].append(run)
    return [
        Cell(plan, records[plan["index"]], runs[plan["index"]])
        for plan in lines(folder / "cells.jsonl")
    ]


def effective_size(series: list[list[float]]) -> int:
    """`n (1 - r) / (1 + r)`; finite samples only, which is what a good run has."""
    every = np.concatenate([np.asarray(s, float) for s in series])
    pairs = [(a - every.mean(), b - every.mean()) for s in series for a, b in itertools.pairwise(s)]
    n = len(every)
    if len(pairs) < 2 or np.ptp(every) == 0:
        return n
    r = np.mean([a * b for a, b in pairs]) / every.var()
    r = min(1.0, max(0.0, r))
    return max(1, math.floor(n * (1 - r) / (1 + r)))


def quantile(series: list[list[float]], p: float) -> dict:
    every = np.sort(np.concatenate([np.asarray(s, float) for s in series]))
    n = len(every)
    need = max(1, math.ceil(round(1 / (1 - p), 9))) if p != 0.5 else 1
    if n < need:
        return {"p": p, "n": n, "value": None, "low": None, "high": None}
    n_eff = effective_size(series)
    low = int(stats.binom.ppf(0.025, n_eff, p))  # the largest rank below it with 97.5 %
    while low > 0 and stats.binom.cdf(low - 1, n_eff, p) > 0.025:
        low -= 1
    high = int(stats.binom.ppf(0.975, n_eff, p)) + 1
    value = np.quantile(every, p, method="inverted_cdf")

    def at(rank: int) -> float:
        return np.quantile(every, rank / (n_eff + 1), method="inverted_cdf")

    return {
        "p": p,
        "n": n,
        "value": value,
        "low": min(value, at(low)) if low >= 1 else None,
        "high": max(value, at(high)) if high <= n_eff else None,
    }


def pooled(records: list[dict], *, per_token: bool) -> dict[float, float | None]:
    """Percentiles of the gaps; weighted by tokens, with numpy's weighted `inverted_cdf`."""
    gaps, weights = [], []
    for r in records:
        events = r.get("event_us", ())
        if len(events) > 1 and (r.get("output_tokens") or not per_token):
            k = r["output_tokens"] / len(events) if per_token else 1.0
            gaps.extend(np.diff(events) / 1000 / k)
            weights.extend([k] * (len(events) - 1))
    n = round(sum(weights))
    return {
        p: float(np.quantile(gaps, p, method="inverted_cdf", weights=weights))
        if n >= (1 if p == 0.5 else 1 / (1 - p))
        else None
        for p in PERCENTILES
    }


def attainment(cells: list[Cell], slo: dict) -> dict:
    passes = [cell.meets(slo) for cell in cells]
    n, k = sum(map(len, passes)), sum(map(sum, passes))
    n_eff = effective_size([[float(each) for each in cell] for cell in passes])
    k_eff = k * n_eff / n
    low = stats.beta.ppf(0.025, k_eff, n_eff - k_eff + 1) if k_eff > 0 else 0.0
    high = stats.beta.ppf(0.975, k_eff + 1, n_eff - k_eff) if k_eff < n_eff else 1.0
    return {"k": k, "n": n, "n_eff": n_eff, "low": low, "high": high}


def summary(cells: list[Cell], slo: dict) -> dict:
    """The numbers of one row, by the names that `report.json` has for them."""
    measured = [r for cell in cells for r in cell.measured]
    ok = [r for r in measured if not r.get("error")]
    window_s = sum(cell.window_s for cell in cells)
    planned = sum(cell.plan["n_measured"] for cell in cells)
    met = attainment(cells, slo)
    latencies = {}
    for name in LATENCIES:
        values = [cell.values(name, failed=False) for cell in cells]
        aware = [cell.values(name, failed=True) for cell in cells]
        latencies[name] = {
            "quantiles": [quantile(values, p) for p in PERCENTILES],
            "with_failures": [quantile(aware, p) for p in PERCENTILES],
            "mean": np.mean(list(itertools.chain(*values))),
        }
    return {
        "n_planned": planned,
        "n_ok": len(ok),
        "errors": dict(Counter(r["error"] for r in measured if r.get("error"))),
        "served_by": dict(Counter(r["served_variant"] for r in measured)),
        "window_s": window_s,
        "offered_per_s": planned / window_s,
        "achieved_per_s": sum(r.get("t_send_ns") is not None for r in measured) / window_s,
        "output_tokens_per_s": sum(cell.tokens() for cell in cells) / window_s,
        "input_tokens": np.quantile([r["prompt_tokens"] for r in ok], 0.5, method="inverted_cdf"),
        "output_tokens": np.quantile([r["output_tokens"] for r in ok], 0.5, method="inverted_cdf"),
        "attainment": met,
        "goodput_per_s": met["k"] / window_s,
        "client_cpu_share": max(
            run["cpu_s"] * 1e9 / run["t_end_ns"] for cell in cells for run in cell.runs
        ),
        "little_gap": max(little_gap(cell) for cell in cells),
        "peak_in_flight": max(sum(r["peak_in_flight"] for r in cell.runs) for cell in cells),
        "latencies": latencies,
        "itl_ms": pooled(ok, per_token=True),
        "icl_ms": pooled(ok, per_token=False),
    }


def little_gap(cell: Cell) -> float:
    counted = sum(run["in_flight_ns"] for run in cell.runs)
    sent = [r for r in cell.records if r.get("t_send_ns") is not None]
    stayed = sum(r["t_end_ns"] - r["t_send_ns"] for r in sent)
    return abs(counted - stayed) / counted


def comparison(cells: dict[str, list[Cell]], baseline: str, variant: str, name: str, p) -> dict:
    """Student's t on the blocks' log ratios; one cell of each variant in each block."""

    def logs(who: str) -> np.ndarray:
        by_block = sorted(cells[who], key=lambda cell: cell.plan["block"])
        if p is None:
            values = [cell.tokens() / cell.window_s for cell in by_block]
        else:
            needs_all = name in ("ttft_user_ms", "e2e_user_ms")
            values = [
                np.quantile(cell.values(name, failed=needs_all), p, method="inverted_cdf")
                for cell in by_block
            ]
        return np.log(values)

    differences = logs(variant) - logs(baseline)
    n = len(differences)
    centre, error = differences.mean(), differences.std(ddof=1) / math.sqrt(n)
    half = stats.t.ppf(0.975, n - 1) * error
    flips = [
        abs(np.dot(signs, differences)) >= abs(differences.sum()) - 1e-12
        for signs in itertools.product((1, -1), repeat=n)
    ]
    return {
        "n_blocks": n,
        "ratio": math.exp(centre),
        "low": math.exp(centre - half),
        "high": math.exp(centre + half),
        "p_value": 2 * stats.t.sf(abs(centre) / error, n - 1),
        "p_sign_flip": np.mean(flips),
    }


def holm(p_values: list[float]) -> list[float]:
    order, adjusted, least = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for done, i in enumerate(order):
        least = max(least, min(1.0, p_values[i] * (len(p_values) - done)))
        adjusted[i] = least
    return adjusted
