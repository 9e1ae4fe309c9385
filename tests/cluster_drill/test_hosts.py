"""A head and two worker hosts with a real Redis: hosts die and the split changes, under load."""

from collections import Counter, defaultdict

import pytest

from tests.cluster_drill import lab as labs
from tests.cluster_drill.report import ROWS, Row
from tests.cluster_drill.three_hosts import HEAD_AWAY_S, RATE_PER_S, REPLICAS
from tests.fakes.drill import Fate, Sent, rows

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

SEEN_S = 0.25
"""How much later than the host sent it a first byte may be seen here."""
KILLED, DARK = "worker host killed", "worker host without power"
HEARD_WITHIN_S = 18.0
"""How soon HAProxy must have noticed that a host is silent: 10 or 11 s, and a busy machine."""


@pytest.fixture(scope="module")
def seen(redis, folder):
    facts = labs.run("tests.cluster_drill.three_hosts", folder / "hosts", timeout_s=840)
    facts["asked"] = [each.pop("asked") for each in facts["requests"]]
    facts["requests"] = [Sent(**{**each, "fate": Fate(each["fate"])}) for each in facts["requests"]]
    seconds = facts["seconds"]
    ROWS.append(Row("three hosts: brought up", seconds["brought up"]))
    told = {
        "split change": "new split seen by both routers",
        "head back": "whole again with the new head",
        KILLED: "whole again with another host",
    }
    for row in rows(facts["requests"], facts["phases"]):
        requests = [each for each in facts["requests"] if each.phase == row.phase]
        shares = Counter(str(each.variant) for each in requests)
        told_shares = ", ".join(f"{n / row.sent:.0%} {name}" for name, n in sorted(shares.items()))
        slowest_s = max(each.ttft_s or 0.0 for each in requests)
        what = told.get(row.phase)
        ROWS.append(
            Row(
                f"three hosts: {row.phase}",
                HEAD_AWAY_S if row.phase == "head killed" else what and seconds[what],
                row.sent,
                row.failed,
                row.broken,
                facts["retried"].get(row.phase, 0),
                f"{told_shares}; TTFT at most {slowest_s:.2f} s",
            )
        )
    return facts


@pytest.fixture(scope="module")
def phases(seen):
    found = defaultdict(list)
    for each in seen["requests"]:
        found[each.phase].append(each)
    return found


def test_every_host_had_a_replica_of_everything(seen):
    """So that what follows was as hard as it is meant to be."""
    on = defaultdict(set)
    for each in seen["places"]:
        on[each["application"]].add(each["node_ip"])
    assert {name: len(ips) for name, ips in on.items()} == REPLICAS
    assert all(seen["head"] not in ips for ips in on.values())


@pytest.mark.parametrize("phase", ["baseline", "split change", "new split", "another host"])
def test_no_request_fails_before_and_after(phases, phase):
    wrong(phases[phase])


def test_a_new_split_is_seen_by_both_routers_and_no_request_fails(phases):
    wrong(phases["split change"])
    shares = Counter(each.variant for each in phases["new split"])
    assert shares["awq"] / shares.total() > 0.75, "90 % are meant to"
    before = Counter(each.variant for each in phases["baseline"])
    assert before["awq"] / before.total() < 0.75, "50 % were meant to"


def test_no_request_fails_without_a_head_nor_when_another_comes(seen, phases):
    assert len(phases["head killed"]) >= 0.9 * RATE_PER_S * HEAD_AWAY_S
    wrong(phases["head killed"] + phases["head back"])
    assert not +Counter(seen["retried"]) - Counter({KILLED: 10**6, DARK: 10**6}), "asked twice"


@pytest.mark.parametrize("phase", [KILLED, DARK])
def test_of_a_lost_host_only_streams_that_had_begun_are_lost(seen, phases, phase):
    lost = [each for each in phases[phase] if each.fate is not Fate.OK]
    wrong([each for each in lost if not had_begun(each, seen["marks"][phase])])
    assert len(lost) <= 2 * RATE_PER_S, "those of a second or two were under way"
    assert seen["retried"].get(phase, 0) > 0, "no client met the dead host"


def test_nobody_waits_for_a_host_without_power(seen):
    """What went through the other host's ingress ends, or is asked of another replica there."""
    cut_s = seen["marks"][DARK]
    through_the_other = [
        each
        for each, asked in zip(seen["requests"], seen["asked"], strict=True)
        if each.sent_s < cut_s < each.end_s and seen["dark"] not in "".join(asked)
    ]
    assert through_the_other, "nothing was under way"
    assert max(each.end_s for each in through_the_other) < cut_s + HEARD_WITHIN_S


def wrong(requests) -> None:
    """Fails with those that are not whole."""
    found = Counter(
        (each.phase, each.fate.value, each.variant, each.detail[:160])
        for each in requests
        if each.fate is not Fate.OK
    )
    assert not found, "\n".join(f"{n} x {what}" for what, n in found.most_common(10))


def had_begun(sent: Sent, killed_s: float) -> bool:
    """Whether it was under way when the host was killed, and its answer had begun."""
    begun = sent.first_s is not None and sent.first_s < killed_s + SEEN_S
    return begun and sent.sent_s < killed_s < sent.end_s
