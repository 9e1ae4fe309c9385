"""The split as a client sees it: exact shares, sticky sessions, changed live without a loss."""

import asyncio
import os
import signal
import time
from collections import Counter

import httpx
import pytest
from scipy import stats

from serve_app.routing.split import assign
from tests.fakes.serve_client import CHAT, chat, direct_ports, replica_pids, wait_until
from tests.serve_local.conftest import MODEL, SHARES

pytestmark = pytest.mark.serve
TOKENIZE = {"model": MODEL, "prompt": "x"}


async def variant_of(client: httpx.AsyncClient, session: str) -> str:
    answer = await client.post("/tokenize", json=TOKENIZE, headers={"x-session-id": session})
    answer.raise_for_status()
    assert answer.headers["x-route-reason"] == "sticky"
    return answer.headers["x-variant"]


async def test_ten_thousand_sessions_follow_the_shares(serve):
    keys = [f"session-{number}" for number in range(10_000)]
    limit = asyncio.Semaphore(32)
    async with httpx.AsyncClient(base_url=serve.base_url, timeout=60) as client:

        async def ask(key: str) -> str:
            async with limit:
                return await variant_of(client, key)

        seen = await asyncio.gather(*(ask(key) for key in keys))
    counts = Counter(seen)
    expected = {name: len(keys) * share / 10_000 for name, share in SHARES.items()}
    assert counts.keys() == expected.keys()
    p_value = stats.chisquare([counts[name] for name in expected], list(expected.values())).pvalue
    assert p_value > 0.001, (counts, p_value)
    assert seen == [assign(key, SHARES) for key in keys]


async def test_router_replicas_agree_and_a_restarted_one_too(serve):
    sessions = [f"user-{number}" for number in range(50)]
    pids = replica_pids("router:VariantRouter", serve.pid)
    assert len(pids) == 2
    expected = [assign(session, SHARES) for session in sessions]
    for pid in pids:
        (port,) = direct_ports(pid)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert [await variant_of(client, session) for session in sessions] == expected

    victim = min(pids)
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: (
            len(fresh := replica_pids("router:VariantRouter", serve.pid) - pids) == 1
            and bool(direct_ports(next(iter(fresh))))
        ),
        60,
        "a new router replica",
    )
    (new_pid,) = replica_pids("router:VariantRouter", serve.pid) - pids
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{direct_ports(new_pid)[0]}") as client:
        assert [await variant_of(client, session) for session in sessions] == expected


async def test_changing_the_split_under_load_loses_nothing_and_takes_five_seconds(serve, deploy):
    sent: list[tuple[float, int, str]] = []
    changed_at = 0.0

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        start = time.monotonic()
        headers = {"x-session-id": f"load-{number}"}
        answer = await client.post(CHAT, json=chat(MODEL, stream=number % 2 == 0), headers=headers)
        sent.append((start, answer.status_code, answer.headers.get("x-variant", "")))

    async with httpx.AsyncClient(base_url=serve.base_url, timeout=60) as client:
        tasks = []
        change: asyncio.Task[None] | None = None
        start = time.monotonic()
        for number in range(450):
            if number == 90:
                shares = {"a": 0, "b": 0, "c": 10_000}
                change = asyncio.create_task(asyncio.to_thread(deploy, shares=shares))
            if change is not None and change.done() and not changed_at:
                change.result()
                changed_at = time.monotonic()
            tasks.append(asyncio.create_task(ask(client, number)))
            # open loop: 30 requests a second, whatever the answers do
            await asyncio.sleep(max(0, start + number / 30 - time.monotonic()))
        await asyncio.gather(*tasks)
    assert changed_at, "the deploy did not finish during the load"
    assert Counter(status for _, status, _ in sent) == {200: 450}
    late = Counter(variant for at, _, variant in sent if at > changed_at + 5)
    assert late.keys() == {"c"}, late
    assert sum(late.values()) >= 30, "too few requests after the change to tell"
    assert {variant for at, _, variant in sent if at < start + 3} >= {"a", "b"}


async def test_a_wrong_split_is_refused_and_the_last_good_one_stays(serve, deploy):
    deploy(shares={"a": 5000, "b": 3000, "c": 1999})
    await asyncio.sleep(6)
    async with httpx.AsyncClient(base_url=serve.base_url) as client:
        variants = [await variant_of(client, f"s{number}") for number in range(20)]
        assert variants == [assign(f"s{number}", SHARES) for number in range(20)]
        assert (await client.get("/readyz")).status_code == 200
