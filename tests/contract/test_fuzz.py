"""The router under 20,000 requests as nobody should send them; `QUANTILE_FUZZ_REQUESTS` for more.

A real router in a process of its own, over real sockets, in front of fake variants of which some
fail, break off, are slow or busy. None of it may make the router answer with a 500 of its own, or
with an error of another shape than OpenAI's; grow; or make up a label of a metric. Canaries, good
requests in between, are all served by whom the split says: nothing that one client sends makes a
variant look down to others.
"""

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from serve_app.serving.openapi import ERRORS, OPENAPI_PATH, RELAYED, openapi_document
from tests.fakes import fuzz_strategies as strategies
from tests.fakes.fuzz_cases import ALIAS, KEY, MAX_BODY_BYTES, Case, cases
from tests.fakes.fuzz_judge import complaints
from tests.fakes.router_process import RouterProcess, Vitals, router_process
from tests.fakes.variant_host import variant_host
from tests.fakes.wire import Outcome, Reply, Talk, Wire

N_REQUESTS = int(os.environ.get("QUANTILE_FUZZ_REQUESTS", "20000"))
SEED = int(os.environ.get("QUANTILE_FUZZ_SEED", "6"))
ROUNDS, WARM_UP_ROUNDS = 10, 3
MAX_GROWTH = 0.05
CONCURRENCY = 24
HYPOTHESIS_SHARES = {"bodies": 0.10, "messages": 0.08, "raw_bytes": 0.03}
SCHEMATHESIS_SHARE = 0.04

QUICK = {"ttft_ms": 0.5, "itl_ms": 0.2, "output_tokens": 3, "max_model_len": 512}
SCRIPTS: dict[str, dict[str, Any]] = {
    "a": QUICK,
    "b": QUICK,
    "slow": {**QUICK, "itl_ms": 2, "faults": [{"kind": "SlowBody", "piece_bytes": 32}]},
    "failing": {**QUICK, "faults": [{"kind": "FailEvery", "k": 2, "status": 500}]},
    "busy": {**QUICK, "faults": [{"kind": "FailEvery", "k": 1, "status": 503}]},
    "dying": {**QUICK, "faults": [{"kind": "DieMidStream", "after_tokens": 1}]},
}
CUT = frozenset({"dying"})
SHARES = {"a": 6000, "b": 4000, "slow": 0, "failing": 0, "busy": 0, "dying": 0}

TEXT = {"type": "string"}
CONFORMANCE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
MOST_VALUES = 16
"""Of a label that is neither a variant nor a status: reasons, outcomes, kinds, limits."""
MAX_IDLE_CONNECTIONS = 256
"""That the router's pool of connections to its variants may keep (`UpstreamPool`)."""

pytestmark = pytest.mark.timeout(600)


@dataclass
class Tally:
    """What was sent and what came of it."""

    n_requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    canaries: Counter[tuple[str, str]] = field(default_factory=Counter)

    def judge(self, case: Case, outcome: Outcome) -> list[str]:
        """Count a conversation; what is wrong with it is kept, and returned."""
        self.n_requests[case.family] += case.n_requests
        self.endings[outcome.ending] += 1
        for reply in outcome.replies:
            who = reply.header("x-variant")
            self.statuses[f"{reply.status} {'router' if who == 'none' else who or 'server'}"] += 1
            if case.family == "canary":
                self.canaries[who or "", reply.header("x-route-reason") or ""] += 1
        found = complaints(
            case.talk, outcome, well_formed=case.well_formed, variants=SCRIPTS, cut=CUT
        )
        if case.expects is not None:
            wrong = {reply.status for reply in outcome.replies} - case.expects
            found += [f"status {wrong}, expected {set(case.expects)}"] if wrong else []
        shown = b"".join(piece for piece in case.talk.pieces if isinstance(piece, bytes))[:300]
        self.wrong += [f"{case.family}: {text}; sent {shown!r}" for text in found]
        return found

    def table(self) -> str:
        """The counts, as the test prints them."""
        rows = [
            *(f"  {name:<20}{n:>7}" for name, n in sorted(self.n_requests.items())),
            f"  {'total':<20}{self.n_requests.total():>7}",
            "answers by status and who gave it:",
            *(f"  {name:<20}{n:>7}" for name, n in sorted(self.statuses.items())),
            f"conversations ended: {dict(self.endings)}",
        ]
        return "\n".join(["requests by family:", *rows])


class Fuzz:
    """One router, its variants, and all that was sent to it."""

    def __init__(self, router: RouterProcess) -> None:
        self.router = router
        self.tally = Tally()
        self.warm: Vitals | None = None
        self.rss_bytes: list[int] = []
        self._wire = Wire(router.port)
        self._runner = asyncio.Runner()
        self._number = 0
        self._session = requests.Session()
        self._documented = _documented(router)

    def close(self) -> None:
        self._session.close()
        self._runner.close()

    def round(self, index: int, n_total: int) -> None:
        """A tenth of everything: all families in one mix, so that each round is like the others."""
        seeded = cases(n_total, SEED * 1000 + index, self._number)
        self._number += len(seeded)
        self._runner.run(self._seeded(seeded))
        for name, share in HYPOTHESIS_SHARES.items():
            self._hypothesis(getattr(strategies, name)(), index, max(1, round(n_total * share)))
        self._schemathesis(index, max(1, round(n_total * SCHEMATHESIS_SHARE)))
        self.rss_bytes.append(self.router.vitals().rss_bytes)

    async def _seeded(self, seeded: list[Case]) -> None:
        waiting = iter(seeded)

        async def work() -> None:
            for case in waiting:
                self.tally.judge(case, await self._wire.talk(case.talk))

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())

    def _hypothesis(self, strategy: Any, index: int, n: int) -> None:
        """Drawn one by one, so that hypothesis can shrink what fails."""

        @seed(SEED * 1000 + index)
        @settings(
            max_examples=n,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def ask(case: Case) -> None:
            outcome = self._runner.run(self._wire.talk(case.talk))
            found = self.tally.judge(case, outcome)
            assert not found, f"{found} for {case.talk.pieces!r}: {outcome}"

        ask()

    def _schemathesis(self, index: int, n: int) -> None:
        """Drawn from the document that the router serves, and its answers held against it."""

        @seed(SEED * 1000 + index)
        @settings(
            max_examples=n,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(self._documented)
        def ask(drawn: schemathesis.Case) -> None:
            answer = drawn.call(base_url=self.router.url, session=self._session, timeout=15)
            reply = Reply(answer.status_code, whole=True, body=answer.content)
            reply.headers = [(k, v) for k, values in answer.headers.items() for v in values]
            case = Case("schemathesis", Talk(()))
            found = self.tally.judge(case, Outcome("whole", [reply]))
            assert not found, f"{found} for {drawn.as_curl_command()}"
            drawn.validate_response(answer, checks=CONFORMANCE)

        ask()


def _documented(router: RouterProcess) -> Any:
    """Cases by the router's own document, with models that it has as well as any others."""
    served = requests.get(router.url + OPENAPI_PATH, timeout=5)
    document = served.json()
    assert document == openapi_document()
    for path in RELAYED:
        content = document["paths"][path]["post"]["requestBody"]["content"]
        fields = content["application/json"]["schema"]["properties"]
        fields["model"] = {"anyOf": [{"enum": [ALIAS, *(f"{ALIAS}@{n}" for n in SCRIPTS)]}, TEXT]}
    schema = schemathesis.openapi.from_dict(document)
    modes = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    return strategies.st.one_of(*(schema.as_strategy(generation_mode=mode) for mode in modes))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def _user_config(folder: Path) -> dict[str, Any]:
    """A router with all of its parts at work."""
    keys = folder / "keys.yaml"
    keys.write_text(
        f"tenants: {{acme: {{keys: [{{sha256: {sha256(KEY.encode()).hexdigest()}}}]}}}}"
    )
    return {
        "split": SHARES,
        "fallback": ["a", "b"],
        "ladder": {"rungs": ["a", "b"], "ttft_p95_ms": 2000},
        "shadow": {
            "variant": "slow",
            "share_bp": 5000,
            "only_greedy": False,
            "log": {"path": str(folder / "shadow.jsonl"), "max_bytes": 1 << 20},
        },
        "admission": {
            "keys_file": str(keys),
            "anonymous": True,
            "max_in_flight": 64,
            "body": {"piece_timeout_s": 1, "timeout_s": 3},
        },
        "resilience": {"idle_timeout_ms": 5000},
    }


@pytest.fixture(scope="module")
def fuzz(logs: Path) -> Iterator[Fuzz]:
    with variant_host([ALIAS], SCRIPTS, logs / "variants.log") as port:
        args = {
            "model": ALIAS,
            "ingress_url": f"http://127.0.0.1:{port}",
            "max_body_bytes": MAX_BODY_BYTES,
        }
        with router_process(args, _user_config(logs), logs / "router.log") as router:
            _wait_until_ready(router)
            fuzz = Fuzz(router)
            yield fuzz
            fuzz.close()


def test_nothing_that_a_client_sends_harms_the_router(fuzz: Fuzz, logs: Path) -> None:
    start_s = time.monotonic()
    for index in range(ROUNDS):
        fuzz.round(index, N_REQUESTS // ROUNDS)
        if index == WARM_UP_ROUNDS - 1:
            fuzz.warm = fuzz.router.vitals()
    took_s = time.monotonic() - start_s
    time.sleep(1.0)  # connections of clients that left are closed
    after, warm, tally = fuzz.router.vitals(), fuzz.warm, fuzz.tally
    assert warm is not None
    growth = after.rss_bytes / warm.rss_bytes - 1
    print(f"\n{tally.table()}\nin {took_s:.0f} s; memory {growth:+.1%} after warm-up:")
    print("MiB by round: " + ", ".join(f"{n / (1 << 20):.1f}" for n in fuzz.rss_bytes))
    print(f"open files {warm.fds} -> {after.fds}, tasks {warm.tasks} -> {after.tasks}")
    print(f"label sets by metric: {after.label_sets}")

    assert tally.n_requests.total() >= N_REQUESTS
    if tally.wrong:
        told = "\n".join(tally.wrong[:20])
        pytest.fail(f"{len(tally.wrong)} wrong answers:\n{told}", pytrace=False)
    canaries = {(variant, reason) for variant in "ab" for reason in ("sticky", "ladder")}
    assert set(tally.canaries) <= canaries, tally.canaries
    assert growth <= MAX_GROWTH
    assert after.fds <= warm.fds + MAX_IDLE_CONNECTIONS
    assert after.tasks <= warm.tasks + 2
    _assert_labels_are_ours(after)
    log = (logs / "router.log").read_text()
    for fatal in ("a request could not be routed", "never retrieved", "was never awaited"):
        assert fatal not in log, log[log.index(fatal) - 200 :][:3000]


def _assert_labels_are_ours(vitals: Vitals) -> None:
    """No label's value comes from a request: those were all different, and numbered."""
    known = {
        "variant": {*SCRIPTS, "none"},
        "status": {str(status) for status in {200, *ERRORS}},
    }
    for label, values in vitals.labels.items():
        allowed = known.get(label.rpartition(".")[2])
        if allowed is not None:
            assert set(values) <= allowed, f"{label}: {values}"
        else:
            assert all(re.fullmatch("[a-z_]{1,40}", value) for value in values), (label, values)
            assert len(values) <= MOST_VALUES, (label, values)


def _wait_until_ready(router: RouterProcess) -> None:
    deadline_s = time.monotonic() + 20
    while requests.get(f"{router.url}/readyz", timeout=5).status_code != 200:
        assert time.monotonic() < deadline_s, router.log.read_text()
        time.sleep(0.05)
