"""Folders of load runs that never ran: plausible records, written as the load process does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadtests.records.manifest import (
    SCHEMA_VERSION,
    Ending,
    EndReason,
    Manifest,
    MetricSample,
    RunFiles,
    VariantFacts,
)
from loadtests.records.record import CellPlan, CellRun, ErrorClass, JsonlWriter, RequestRecord

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
SPEED = {"bf16": 1.0, "fp8": 0.72, "awq": 0.98, "int8<b>": 1.35}
"""Service time as a multiple of the baseline's; one name is markup, as a hostile target's is."""
FAILURES = {"int8<b>": 0.03}
FACTS = {
    "engine": "vLLM 0.32.0", "device": "NVIDIA H100 80GB HBM3", "torch": "2.10.0+cu130",
    "kernel.o_proj": "CompressedTensorsWNa16 > MarlinLinearKernel (28 layers), UnquantizedLinear "
    "(4 layers)", "kernel.lm_head": "UnquantizedEmbeddingMethod", "attention": "FLASH_ATTN",
    "dtype": "bfloat16", "max_model_len": "8192", "max_num_seqs": "256",
    "max_num_batched_tokens": "8192", "enforce_eager": "False", "kv_cache_dtype": "auto",
    "prefix_caching": "True", "tensor_parallel_size": "1", "kv_cache_bytes": "51234567890",
}  # fmt: skip
"""As `serve_app.engines.vllm_facts` names them; `kernel.qkv_proj` differs by variant."""
HOSTILE_DETAIL = "<script>console.error('injected')</script>"


def campaign(**changes: Any) -> dict[str, Any]:
    """Three levels of load on four variants, as the YAML of a campaign says it."""
    return {
        "target": {"model": "reference-<7b>", "variants": list(SPEED), "baseline": "bf16"},
        "workload": {"prompts": {"kind": "corpus"}, "max_tokens": [8, 24]},
        "stages": [
            {"name": "light", "kind": "poisson", "rate_per_s": 4, "duration_s": 10},
            {"name": "medium", "kind": "poisson", "rate_per_s": 8, "duration_s": 10},
            {
                "name": "heavy",
                "kind": "gamma",
                "rate_per_s": 14,
                "burstiness": 0.5,
                "duration_s": 10,
            },
        ],
        "blocks": 6,
        "seed": 3,
        "warmup_s": 1,
        "cooldown_s": 0.5,
        "slo": {"ttft_ms": 300, "e2e_ms": 1500, "attainment": 0.95},
    } | changes


def search_campaign(**changes: Any) -> dict[str, Any]:
    """A search for the highest rate between 2 and 32 requests per second."""
    search = {"duration_s": 20, "low_per_s": 2, "high_per_s": 32, "precision": 0.25}
    return campaign(stages=[], blocks=1, search=search) | changes


class FakeRun:
    """Writes one run's folder cell by cell; `keep` stops it after so many cells."""

    def __init__(self, folder: Path, plan: dict[str, Any], *, n_workers: int = 1) -> None:
        self.files = RunFiles(folder)
        self._plan = plan
        self._rng = np.random.default_rng(plan["seed"])
        self._start_ns = 0
        self._n_cells = 0
        self._n_workers = n_workers
        folder.mkdir(parents=True, exist_ok=True)

    def write_manifest(self, n_cells: int | None, **changes: Any) -> None:
        facts = {
            name: VariantFacts(replicas=1, facts=FACTS | {"kernel.qkv_proj": f"{name}-gemm"})
            for name in self._plan["target"]["variants"]
        }
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            started_at="2026-11-21T12:00:00+00:00",
            host={
                "machine": "x86_64",
                "cpus": "16",
                "python": "3.11.7",
                "locust": "2.47.0",
                "quantile": "0.1.0",
            },
            campaign=self._plan,
            n_workers=self._n_workers,
            n_cells=n_cells,
            inputs={"prompts.jsonl": "9f" * 32},
            variants=facts,
            columns={"bytes seen": dict.fromkeys(SPEED, "1,234,567")},
        )
        self.files.write_manifest(msgspec.structs.replace(manifest, **changes))

    def add_cell(
        self,
        stage: str,
        block: int,
        variant: str,
        rate_per_s: float,
        s: float,
        concurrency: int | None = None,
    ) -> None:
        """One whole cell: its plan, its records and every worker's account of them.

        With `concurrency` a closed loop that came to `rate_per_s`.
        """
        warmup_s, cooldown_s = self._plan["warmup_s"], self._plan["cooldown_s"]
        total_s = warmup_s + s + cooldown_s
        window_ns = (round(warmup_s * NS_PER_S), round((warmup_s + s) * NS_PER_S))
        # by block and rate alone: every variant gets the same arrivals
        arrivals = np.random.default_rng([block, round(rate_per_s * 100)])
        n = round(rate_per_s * total_s)
        sched = np.sort(arrivals.integers(0, round(total_s * NS_PER_S), n))
        phases = [_phase(t, window_ns) for t in sched]
        cell = self._n_cells
        records = [
            self._record(cell, i, int(t), phase, variant, rate_per_s)
            for i, (t, phase) in enumerate(zip(sched, phases, strict=True))
        ]
        end_ns = max([round(total_s * NS_PER_S), *(r.t_end_ns or 0 for r in records)])
        plan = CellPlan(
            index=cell, stage=stage, block=block, repeat=0, variant=variant,
            rate_per_s=None if concurrency else rate_per_s, concurrency=concurrency,
            window_ns=window_ns, end_ns=round(total_s * NS_PER_S), start_ns=self._start_ns,
            n_measured=0 if concurrency else phases.count("measured"),
        )  # fmt: skip
        _append(self.files.cells, [plan])
        _append(self.files.records, records)
        _append(
            self.files.runs, [self._run(cell, w, records, end_ns) for w in range(self._n_workers)]
        )
        self._add_samples(variant, rate_per_s, end_ns)
        self._start_ns += end_ns + NS_PER_S // 5
        self._n_cells += 1

    def _record(
        self, cell: int, index: int, t: int, phase: Any, variant: str, rate_per_s: float
    ) -> RequestRecord:
        rng = self._rng
        send = t + int(rng.gamma(2, 0.15) * NS_PER_MS)
        plain: dict[str, Any] = {
            "cell": cell, "index": index, "worker": index % self._n_workers, "phase": phase,
            "variant": variant, "t_sched_ns": t, "t_send_ns": send, "max_tokens": 24,
        }  # fmt: skip
        if rng.random() < FAILURES.get(variant, 0.0) * rate_per_s / 8:
            error = (ErrorClass.TIMEOUT, ErrorClass.UNAVAILABLE, ErrorClass.TRUNCATED)[index % 3]
            end = send + int(rng.uniform(5, 900) * NS_PER_MS)
            return RequestRecord(**plain, t_end_ns=end, error=error, detail=HOSTILE_DETAIL)
        tokens = int(rng.integers(8, 25))
        slow = SPEED[variant] * (1 + (rate_per_s / 16) ** 2)
        first = send + int((25 + 30 * slow * rng.lognormal(0, 0.55)) * NS_PER_MS)
        gaps_us = np.round(9_000 * slow * rng.lognormal(0, 0.15, tokens - 1)).astype(int)
        events = (0, *(int(us) for us in np.cumsum(gaps_us)))
        last = first + events[-1] * 1000
        return RequestRecord(
            **plain | {"max_tokens": tokens}, served_variant=variant, t_first_ns=first,
            t_last_ns=last, t_end_ns=last + 300_000, event_us=events, status=200,
            finish_reason="length", prompt_tokens=40, output_tokens=tokens,
        )  # fmt: skip

    def _run(
        self, cell: int, worker: int, records: Sequence[RequestRecord], end_ns: int
    ) -> CellRun:
        mine = [r for r in records if r.worker == worker]
        stays = sum(r.t_end_ns - r.t_send_ns for r in mine if r.t_end_ns and r.t_send_ns)
        return CellRun(
            cell=cell, worker=worker, n_records=len(mine), t_end_ns=end_ns,
            cpu_s=0.11 * end_ns / NS_PER_S, in_flight_ns=stays, peak_in_flight=9,
        )  # fmt: skip

    def _add_samples(self, variant: str, rate_per_s: float, end_ns: int) -> None:
        samples = []
        for name in self._plan["target"]["variants"]:
            load = rate_per_s * SPEED[name] / 4 if name == variant else 0.0
            for t_ns in range(self._start_ns, self._start_ns + end_ns, 2 * NS_PER_S):
                noise = self._rng.random() * (load > 0)
                for series, value in (
                    ("vllm:num_requests_running", round(load + noise)),
                    ("vllm:num_requests_waiting", round(max(0.0, load - 3))),
                    ("vllm:kv_cache_usage_perc", min(1.0, load / 12 + noise / 50)),
                ):
                    labels = {"model_name": f"reference@{name}", "engine": "0"}
                    samples.append(
                        MetricSample(t_ns=t_ns, name=series, labels=labels, value=float(value))
                    )
        _append(self.files.samples, samples)


def write_run(folder: Path, plan: dict[str, Any] | None = None, *, keep: int | None = None) -> Path:
    """A whole run of `campaign()`; with `keep` one that was killed after so many cells."""
    plan = plan or campaign()
    run = FakeRun(folder, plan, n_workers=2)
    variants = plan["target"]["variants"]
    order = np.random.default_rng(plan["seed"])
    cells = [
        (
            stage["name"],
            block,
            str(variant),
            _rate_of(stage),
            stage["duration_s"],
            stage.get("concurrency"),
        )
        for block in range(plan["blocks"])
        for stage in plan["stages"]
        for variant in order.permutation(variants)
    ]
    run.write_manifest(len(cells))
    for cell in cells[:keep]:
        run.add_cell(*cell)
    if keep is None:
        run.files.write_ending(Ending(reason=EndReason.COMPLETE))
    return folder


def write_search(folder: Path, rates: Mapping[str, Sequence[float]] | None = None) -> Path:
    """A run of `search_campaign()` that tried `rates` on each variant."""
    plan = search_campaign()
    run = FakeRun(folder, plan)
    run.write_manifest(None)
    tried = rates or dict.fromkeys(SPEED, (8.0, 16.0, 22.6, 27.0))
    for turn in range(max(map(len, tried.values()))):
        for variant, each in tried.items():
            if turn < len(each):
                rate = each[turn]
                run.add_cell(f"{rate:g}/s", 0, variant, rate, plan["search"]["duration_s"])
    run.files.write_ending(Ending(reason=EndReason.COMPLETE))
    return folder


def _rate_of(stage: Mapping[str, Any]) -> float:
    """Of a ramp the mean; what a closed loop or a trace comes to is made up."""
    if stage["kind"] == "ramp":
        return float(stage["from_per_s"] + stage["to_per_s"]) / 2
    return float(stage.get("rate_per_s", 10))


def _phase(t: int, window_ns: tuple[int, int]) -> str:
    if t < window_ns[0]:
        return "warmup"
    return "measured" if t < window_ns[1] else "cooldown"


def _append(path: Path, items: Sequence[msgspec.Struct]) -> None:
    writer = JsonlWriter(path)
    for item in items:
        writer.write(item)
    writer.close()
