"""The numbers of a `report.json` made again from the run's raw files, by other means.

Written from the formulas in the report alone: plain dictionaries, numpy's `inverted_cdf`, scipy's
distributions; nothing of loadtests is imported. `report` makes rows, comparisons, brackets and
verdicts again, but for texts, the classes better and worse, and bootstrap intervals: no other
program can draw those again. `bootstrap` draws its own; the two should nearly agree.
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
REFUSED = "refused_by_client"
SHARES = ("error_rate", "attainment")


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
            if r.get("t_first_ns") is not None and r.get("event_us") and r.get("output_tokens"):
                at = r["t_first_ns"] + 1000 * np.asarray(r["event_us"])
                inside = np.count_nonzero((at >= start) & (at < end))
                total += inside * r["output_tokens"] / len(at)
        return total

    def meets(self, slo: dict, *, as_served: bool = False) -> list[bool]:
        clock = "service" if as_served else "user"
        limits = (("ttft_ms", f"ttft_{clock}_ms"), ("e2e_ms", f"e2e_{clock}_ms"))
        return [
            not r.get("error")
            and all(slo.get(key) is None or LATENCIES[name](r) <= slo[key] for key, name in limits)
            and meets_tpot(r, slo.get("tpot_ms"))
            for r in self.measured
        ]

    def statistic(self, name: str, p: float | None, slo: dict | None) -> float | None:
        """What is compared; None: too few samples."""
        if name == "error_rate":
            return np.mean([bool(r.get("error")) for r in self.measured])
        if name == "attainment":
            return np.mean(self.meets(slo))
        if name == "output_tokens_per_s":
            return self.tokens() / self.window_s
        values = self.values(name, failed=name in ("ttft_user_ms", "e2e_user_ms"))
        return np.quantile(values, p, method="inverted_cdf") if enough(len(values), p) else None


def meets_tpot(r: dict, limit: float | None) -> bool:
    if limit is None or r.get("output_tokens") in (0, 1):
        return True
    return tpot(r) is not None and tpot(r) <= limit


def enough(n: int, p: float) -> bool:
    return n >= (1 if p == 0.5 else round(1 / (1 - p)))


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


def effective_size(series: list[list[float]], marks: list[list[float]]) -> int:
    """The lesser of `n (1 - r) / (1 + r)` of the series and `n / D` of the marks."""
    every = np.concatenate([np.asarray(s, float) for s in series])
    n, finite = len(every), every[np.isfinite(every)]
    top = 2 * np.abs(finite).max() if len(finite) else 1.0
    cut = [np.minimum(s, top) for s in series]
    every = np.minimum(every, top)
    pairs = [(a - every.mean(), b - every.mean()) for s in cut for a, b in itertools.pairwise(s)]
    r = 0.0
    if len(pairs) >= 2 and np.ptp(every) > 0:
        r = min(1.0, max(0.0, np.mean([a * b for a, b in pairs]) / every.var()))
    return max(1, math.floor(min(n * (1 - r) / (1 + r), n / design_effect(marks))))


def design_effect(marks: list[list[float]]) -> float:
    groups = [np.asarray(s, float) for s in marks if len(s)]
    k, every = len(groups), np.concatenate(groups)
    if k < 5 or np.ptp(every) == 0:
        return 1.0
    sizes = np.array([len(g) for g in groups])
    m = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (k - 1)
    f = stats.f_oneway(*groups).statistic
    icc = (f - 1) / (f - 1 + m) if math.isfinite(f) else 1.0
    t_over_z = stats.t.ppf(0.975, k - 1) / stats.norm.ppf(0.975)
    return max(1.0, (1 + (m - 1) * icc) * t_over_z**2)


def quantile(series: list[list[float]], p: float) -> dict:
    every = np.sort(np.concatenate([np.asarray(s, float) for s in series]))
    n = len(every)
    if not enough(n, p):
        return {"p": p, "n": n, "value": None, "low": None, "high": None}
    value = np.quantile(every, p, method="inverted_cdf")
    n_eff = effective_size(series, [[each < value for each in s] for s in series])
    low = int(stats.binom.ppf(0.025, n_eff, p))  # the largest rank below it with 97.5 %
    while low > 0 and stats.binom.cdf(low - 1, n_eff, p) > 0.025:
        low -= 1
    high = int(stats.binom.ppf(0.975, n_eff, p)) + 1

    def at(rank: int) -> float:
        up_to = rank / (n_eff + 1) * (1 - 1e-12)  # 234 / 427 * 427 is a little more than 234
        return np.quantile(every, up_to, method="inverted_cdf")

    return {
        "p": p,
        "n": n,
        "value": value,
        "low": min(value, at(low)) if low >= 1 else None,
        "high": max(value, at(high)) if high <= n_eff else None,
    }


def bootstrap(series: list[list[float]], p: float, seed: int) -> np.ndarray:
    """The percentile in 1,000 draws of all cells but one, with replacement; sorted."""
    rng, k = np.random.default_rng(seed), len(series)
    drawn = [rng.choice(k, k - 1) for _ in range(1000)]
    parts = [np.asarray(s, float) for s in series]
    return np.sort(
        [
            np.quantile(np.concatenate([parts[i] for i in some]), p, method="inverted_cdf")
            for some in drawn
        ]
    )


def pooled(records: list[dict], *, per_token: bool) -> dict:
    """Percentiles of the gaps; weighted by tokens, with numpy's weighted `inverted_cdf`."""
    gaps, weights = [], []
    for r in records:
        events = r.get("event_us", ())
        if len(events) > 1 and (r.get("output_tokens") or not per_token):
            k = r["output_tokens"] / len(events) if per_token else 1.0
            gaps.extend(np.diff(events) / 1000 / k)
            weights.extend([k] * (len(events) - 1))
    n = round(sum(weights))
    values = [
        np.quantile(gaps, p, method="inverted_cdf", weights=weights) if enough(n, p) else None
        for p in PERCENTILES
    ]
    return {
        "quantiles": [
            {"p": p, "n": n, "value": v} for p, v in zip(PERCENTILES, values, strict=True)
        ],
        "mean": np.average(gaps, weights=weights) if n else None,
    }


def share(passes: list[list[bool]], confidence: float = 0.95) -> dict:
    n, k = sum(map(len, passes)), sum(map(sum, passes))
    if n == 0:
        return {"k": 0, "n": 0, "n_eff": 0, "low": 0.0, "high": 1.0}
    marks = [[float(each) for each in cell] for cell in passes]
    n_eff, tail = effective_size(marks, marks), (1 - confidence) / 2
    k_eff = k * n_eff / n
    low = stats.beta.ppf(tail, k_eff, n_eff - k_eff + 1) if k_eff > 0 else 0.0
    high = stats.beta.ppf(1 - tail, k_eff + 1, n_eff - k_eff) if k_eff < n_eff else 1.0
    return {"k": k, "n": n, "n_eff": n_eff, "low": low, "high": high}


def verdict_of(met: dict, target: float) -> str:
    if met["low"] >= target:
        return "pass"
    return "fail" if met["high"] < target else "inconclusive"


def row(cells: list[Cell], campaign: dict) -> dict:
    """The numbers of one row, by the names that `report.json` has for them."""
    measured = [r for cell in cells for r in cell.measured]
    ok = [r for r in measured if not r.get("error")]
    window_s = sum(cell.window_s for cell in cells)
    planned = sum(max(cell.plan["n_measured"], len(cell.measured)) for cell in cells)
    latencies = {
        "itl_ms": pooled(ok, per_token=True),
        "icl_ms": pooled(ok, per_token=False),
    }
    for name in LATENCIES:
        values = [cell.values(name, failed=False) for cell in cells]
        aware = [cell.values(name, failed=True) for cell in cells]
        has_failures = name in ("ttft_user_ms", "e2e_user_ms")
        n = sum(map(len, values))
        latencies[name] = {
            "quantiles": [quantile(values, p) for p in PERCENTILES],
            "with_failures": [quantile(aware, p) for p in PERCENTILES] if has_failures else None,
            "mean": np.mean(list(itertools.chain(*values))) if n else None,
        }
    found = {
        "stage": cells[0].plan["stage"],
        "variant": cells[0].plan["variant"],
        "n_planned": planned,
        "n_ok": len(ok),
        "errors": dict(Counter(r["error"] for r in measured if r.get("error"))),
        "served_by": dict(Counter(r["served_variant"] for r in measured if "served_variant" in r)),
        "window_s": window_s,
        "offered_per_s": planned / window_s,
        "achieved_per_s": sum(r.get("t_send_ns") is not None for r in measured) / window_s,
        "output_tokens_per_s": sum(cell.tokens() for cell in cells) / window_s,
        "input_tokens": quantile([[r["prompt_tokens"] for r in ok]], 0.5),
        "output_tokens": quantile([[r["output_tokens"] for r in ok]], 0.5),
        "client_cpu_share": max(
            run["cpu_s"] * 1e9 / cell.plan["end_ns"] for cell in cells for run in cell.runs
        ),
        "little_gap": max(little_gap(cell) for cell in cells),
        "peak_in_flight": max(sum(r["peak_in_flight"] for r in cell.runs) for cell in cells),
        "latencies": latencies,
    }
    slo = campaign["slo"]
    if slo is not None:
        met = share([cell.meets(slo) for cell in cells])
        found |= {"attainment": met, "goodput_per_s": met["k"] / window_s}
    return found | judged(found, cells, campaign)


def judged(found: dict, cells: list[Cell], campaign: dict) -> dict:
    """Whether the row is valid, and its verdict."""
    slo, limits = campaign["slo"], campaign["validity"]
    fails, verdict = False, None
    if slo is not None:
        target, planned = slo["attainment"], found["n_planned"]
        sent = share(
            [
                [
                    m
                    for m, r in zip(c.meets(slo), c.measured, strict=True)
                    if r.get("error") != REFUSED
                ]
                for c in cells
            ]
        )
        fails = (sent["high"] * sent["n"] + planned - sent["n"]) / planned < target
        verdict = "fail" if fails else verdict_of(found["attainment"], target)
    known = [q for q in found["latencies"]["lag_ms"]["quantiles"][:4] if q["value"] is not None]
    lag = known[-1]["value"] if known else 0.0
    ttft = found["latencies"]["ttft_service_ms"]["quantiles"][0]["value"] or math.inf
    gated = campaign.get("search") or any(
        stage["name"] == found["stage"] and stage.get("gate", True) for stage in campaign["stages"]
    )
    ok = [r for cell in cells for r in cell.measured if not r.get("error")]
    is_invalid = (
        (not ok and not (fails and gated))
        or (
            found["achieved_per_s"] < limits["achieved_share"] * found["offered_per_s"]
            and not fails
        )
        or any(r["output_tokens"] != r["max_tokens"] for r in ok)
        or lag > limits["lag_p99_ms"]
        or lag > limits["lag_share_of_ttft"] * ttft
        or breaks_limits(found["client_cpu_share"], found["little_gap"], cells, limits)
    )
    return {
        "is_valid": not is_invalid,
        "slo_verdict": "invalid" if verdict and is_invalid else verdict,
    }


def breaks_limits(cpu: float, gap: float, cells: list[Cell], limits: dict) -> bool:
    clock_ms = max(run.get("clock_error_ns", 0) for cell in cells for run in cell.runs) / MS
    return (
        cpu > limits["client_cpu_share"]
        or gap > limits["little_gap"]
        or clock_ms > limits["clock_error_ms"]
    )


def little_gap(cell: Cell) -> float:
    counted = sum(run["in_flight_ns"] for run in cell.runs)
    sent = [r for r in cell.records if r.get("t_send_ns") is not None]
    stayed = sum(r["t_end_ns"] - r["t_send_ns"] for r in sent)
    return abs(counted - stayed) / counted if counted else float(stayed > 0)


def by_block(cells: list[Cell], name: str, p: float | None, slo: dict) -> dict[int, list[float]]:
    """The statistic of every cell: logarithms, but for shares."""
    found = defaultdict(list)
    for cell in cells:
        value = cell.statistic(name, p, slo)
        if value is not None and name not in SHARES:
            value = math.log(value) if value > 0 else -math.inf
        found[cell.plan["block"]].append(value)
    return dict(sorted(found.items()))


def comparison(to: dict[int, list], of: dict[int, list], name: str, same_within: float) -> dict:
    """Student's t on the blocks' differences of logarithms (of shares: of shares)."""
    if any(value is None for side in (to, of) for each in side.values() for value in each):
        return {"ratio": None, "difference": None, "p_value": None, "values": [None, None]}
    blocks = [block for block in to if block in of]
    a, b = (np.array([np.mean(side[block]) for block in blocks]) for side in (to, of))
    is_share = name in SHARES
    back = float if is_share else math.exp
    found = {"n_blocks": len(blocks), "values": [back(a.mean()), back(b.mean())]}
    if not np.isfinite([*a, *b]).all():
        margin = math.log(1 + same_within)
        less = sum(x < y - margin for x, y in zip(b, a, strict=True))
        more = sum(x > y + margin for x, y in zip(b, a, strict=True))
        p = stats.binomtest(less, less + more).pvalue if less + more else 1.0
        return found | {"ratio": None, "low": None, "high": None, "p_value": p, "p_sign_flip": None}
    d = b - a
    centre, error = d.mean(), d.std(ddof=1) / math.sqrt(len(d))
    half = stats.t.ppf(0.975, len(d) - 1) * error
    p = 1.0 if abs(centre) < 1e-12 else 2 * stats.t.sf(abs(centre) / error, len(d) - 1)
    flips = [
        abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-12
        for signs in itertools.product((1, -1), repeat=len(d))
    ]
    return found | {
        ("difference" if is_share else "ratio"): back(centre),
        "low": back(centre - half),
        "high": back(centre + half),
        "p_value": p,
        "p_sign_flip": np.mean(flips),
        "noise_floor": None if is_share else noise_floor([*to.values(), *of.values()]),
    }


def noise_floor(repeats: list[list[float]]) -> float | None:
    apart = [abs(x - y) for each in repeats for x, y in itertools.combinations(each, 2)]
    return math.exp(np.quantile(apart, 0.5, method="inverted_cdf")) if apart else None


def holm(p_values: list[float | None]) -> list[float | None]:
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted, least = [None] * len(p_values), 0.0
    for done, (p, i) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - done)))
        adjusted[i] = least
    return adjusted


def comparisons(rows: dict[tuple, list[Cell]], campaign: dict) -> list[dict]:
    """Every variant against the first one (or the campaign's baseline), at every stage."""
    baseline = campaign["target"].get("baseline") or campaign["target"]["variants"][0]
    found = []
    for stage in dict.fromkeys(stage for stage, _ in rows):
        of_stage = {variant: cells for (name, variant), cells in rows.items() if name == stage}
        metrics = [*itertools.product(("ttft_user_ms", "e2e_user_ms"), (0.5, 0.95, 0.99))]
        if min(len(c.measured) for cells in of_stage.values() for c in cells) < 100:
            metrics = [each for each in metrics if each[1] < 0.99]
        metrics += [("tpot_ms", 0.5), ("output_tokens_per_s", None), ("error_rate", None)]
        metrics += [("attainment", None)] if campaign["slo"] else []
        of = []
        for variant, (name, p) in itertools.product(of_stage, metrics):
            if variant != baseline:
                sides = [
                    by_block(of_stage[v], name, p, campaign["slo"]) for v in (baseline, variant)
                ]
                numbers = comparison(*sides, name, campaign["same_within"])
                of.append({"stage": stage, "variant": variant, "metric": name, "p": p, **numbers})
        for each, p in zip(of, holm([each["p_value"] for each in of]), strict=True):
            found.append({**each, "p_adjusted": p})
    return found


def saturation(cells: list[Cell], campaign: dict) -> list[dict]:
    """Probes and brackets of a search."""
    search, target = campaign["search"], campaign["slo"]["attainment"]
    found = []
    for variant in campaign["target"]["variants"]:
        rates = defaultdict(list)
        for cell in cells:
            if cell.plan["variant"] == variant:
                rates[float(f"{cell.plan['rate_per_s']:.4g}")].append(cell)
        probes = [probe(rate, rates[rate], campaign) for rate in sorted(rates)]
        holds = [
            p["attainment"]["k"] >= target * p["attainment"]["n"]
            if p["verdict"] == "inconclusive"
            else p["verdict"] == "pass"
            for p in probes
        ]
        first = holds.index(False) if False in holds else len(probes)
        held = probes[first - 1]["rate_per_s"] if first else None
        failed = probes[first] if first < len(probes) else None
        verdict = "inconclusive"
        if failed and failed["verdict"] == "invalid":
            verdict = "invalid"
        elif failed and held and failed["rate_per_s"] <= held * (1 + search["precision"]):
            verdict = "pass"
        elif failed and not held and failed["rate_per_s"] == search["low_per_s"]:
            verdict = failed["verdict"]
        found.append(
            {
                "variant": variant,
                "highest_passed_per_s": held,
                "lowest_failed_per_s": failed["rate_per_s"] if failed else None,
                "probes": probes,
                "verdict": verdict,
            }
        )
    return found


def probe(rate: float, cells: list[Cell], campaign: dict) -> dict:
    slo, target = campaign["slo"], campaign["slo"]["attainment"]
    looks = campaign["search"]["max_repeats"]
    met = share([cell.meets(slo) for cell in cells], 1 - 0.05 / looks)
    verdict = verdict_of(met, target)
    clear = sum(
        served or r.get("error") == REFUSED
        for cell in cells
        for r, served in zip(cell.measured, cell.meets(slo, as_served=True), strict=True)
    )
    cpu = max(run["cpu_s"] * 1e9 / cell.plan["end_ns"] for cell in cells for run in cell.runs)
    gap = max(map(little_gap, cells))
    is_clients = breaks_limits(cpu, gap, cells, campaign["validity"])
    if (verdict == "fail" and clear >= target * met["n"]) or (verdict != "pass" and is_clients):
        verdict = "invalid"
    return {"rate_per_s": rate, "n_cells": len(cells), "attainment": met, "verdict": verdict}


def report(folder: Path, campaign: dict) -> dict:
    """What `report.json` should say of a whole run; `campaign` with its defaults."""
    cells, rows = cells_of(folder), defaultdict(list)
    for cell in cells:
        rows[cell.plan["stage"], cell.plan["variant"]].append(cell)
    variants = campaign["target"]["variants"]
    names = [stage["name"] for stage in campaign["stages"]] or [
        stage for stage, _ in sorted(rows, key=lambda key: rows[key][0].plan["rate_per_s"])
    ]
    in_order = [(s, v) for s in dict.fromkeys(names) for v in variants if (s, v) in rows]
    rows = {key: rows[key] for key in in_order}
    summaries = [row(of_row, campaign) for of_row in rows.values()]
    found = {"summaries": summaries, "comparisons": [], "saturation": []}
    if campaign.get("search"):
        found["saturation"] = saturation(cells, campaign)
        verdicts = [each["verdict"] for each in found["saturation"]]
    else:
        found["comparisons"] = comparisons(rows, campaign)
        gated = [stage["name"] for stage in campaign["stages"] if stage.get("gate", True)]
        verdicts = [each["slo_verdict"] for each in summaries if each["stage"] in gated]
        if not all(each["is_valid"] for each in summaries):
            verdicts.append("invalid")
    order = ("invalid", "fail", "inconclusive", "pass")
    return found | {"verdict": min(filter(None, verdicts), key=order.index, default="pass")}


def differences(found: object, expected: object, where: str = "") -> list[str]:
    """Where `found`, from JSON, is not what was expected; more keys are no difference."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if where.endswith(("errors", "served_by")) and found != expected:
            return [f"{where}: {found} for {expected}"]
        return [
            d for k, v in expected.items() for d in differences(found.get(k), v, f"{where}.{k}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        both = enumerate(zip(found, expected, strict=True))
        return [d for i, (a, b) in both for d in differences(a, b, f"{where}[{i}]")]
    if isinstance(expected, int | float | np.number) and math.isinf(expected):
        expected = None  # JSON has no infinity
    if isinstance(expected, str | bool | None):
        is_same = found == expected
    else:
        is_same = isinstance(found, int | float) and math.isclose(
            found, expected, rel_tol=1e-6, abs_tol=1e-9
        )
    return [] if is_same else [f"{where}: {found} for {expected}"]
