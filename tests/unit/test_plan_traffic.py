import itertools

from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loadtests.campaign import parse_campaign
from loadtests.plan.request import Part
from loadtests.plan.traffic import Traffic

SHORT = {"median": 20, "sigma": 0.5, "max": 60}
MIX = [
    {"name": "chat", "weight": 3, "input_tokens": SHORT, "output_tokens": SHORT},
    {"name": "code", "weight": 1, "input_tokens": SHORT, "output_tokens": SHORT},
]


def campaign(**workload: object):
    prompts = {"kind": "synthetic", "mix": MIX}
    return parse_campaign(
        {
            "target": {"model": "m", "variants": ["a"]},
            "workload": {"prompts": prompts} | workload,
            "stages": [{"name": "s", "kind": "constant", "rate_per_s": 1, "duration_s": 1}],
            "seed": 5,
        },
        "test",
    )


def asks(times, name="s-0", book_size=0, **workload):
    traffic = Traffic(campaign(**workload), name, book_size)
    return [traffic.ask(at_s) for at_s in times]


def sessions(low, high, think_low, think_high):
    return {"turns": [low, high], "think_s": [think_low, think_high]}


def conversations(made):
    """Turns by session, in order."""
    found = {}
    for ask in made:
        found.setdefault(ask.session, []).append(ask)
    return found


def test_a_plain_request_is_one_message_of_its_own():
    made = asks(range(400))
    assert {len(ask.turns) for ask in made} == {1}
    assert {ask.session for ask in made} == {None}
    parts = [part for ask in made for part in ask.turns[0].parts]
    assert len(parts) == 400
    assert len({part.seed for part in parts}) == 400
    assert all(
        1 <= part.n_tokens <= 60 and 1 <= ask.max_tokens <= 60
        for part, ask in zip(parts, made, strict=True)
    )
    kinds = [ask.kind for ask in made]
    assert stats.binomtest(kinds.count("chat"), 400, 0.75).pvalue > 0.01


def test_entries_of_a_book_are_drawn_alike():
    made = asks(range(3000), book_size=3, prompts={"kind": "corpus"}, max_tokens=[4, 9])
    entries = [ask.turns[0].parts[0] for ask in made]
    assert {entry.n_tokens for entry in entries} == {None}
    assert {ask.kind for ask in made} == {""}
    counts = [sum(entry.seed == i for entry in entries) for i in range(3)]
    assert stats.chisquare(counts).pvalue > 0.01
    assert {ask.max_tokens for ask in made} == set(range(4, 10))


def test_a_prefix_is_shared_by_its_share_of_the_requests():
    shared = {"share": 0.3, "tokens": 50, "groups": 3}
    made = asks(range(2000), shared_prefix=shared)
    prefixes = [ask.turns[0].parts[0] for ask in made if len(ask.turns[0].parts) == 2]
    assert stats.binomtest(len(prefixes), 2000, 0.3).pvalue > 0.01
    assert {prefix.n_tokens for prefix in prefixes} == {50}
    groups = sorted({prefix.seed for prefix in prefixes})
    assert len(groups) == 3
    assert stats.chisquare([sum(p.seed == g for p in prefixes) for g in groups]).pvalue > 0.01
    other_stage = asks(range(2000), name="t-4", shared_prefix=shared)
    assert {ask.turns[0].parts[0] for ask in other_stage if len(ask.turns[0].parts) == 2} == {
        Part(group, 50) for group in groups
    }


def test_all_or_none_share_a_prefix():
    for share, n_parts in ((0.0, 1), (1.0, 2)):
        made = asks(range(300), shared_prefix={"share": share, "tokens": 5})
        assert {len(ask.turns[0].parts) for ask in made} == {n_parts}


def test_a_turn_carries_the_conversation_so_far():
    made = asks(range(100), sessions=sessions(4, 4, 1, 3), shared_prefix={"share": 1, "tokens": 7})
    whole = [turns for turns in conversations(made).values() if len(turns) == 4]
    assert len(whole) > 10
    for turns in whole:
        assert len({ask.kind for ask in turns}) == 1
        for number, ask in enumerate(turns):
            assert [turn.role for turn in ask.turns] == ["user", "assistant"] * number + ["user"]
            # the prefix is a system prompt: once, before all
            assert [len(turn.parts) for turn in ask.turns] == [2] + [1] * (2 * number)
            assert ask.turns[0].parts[0].n_tokens == 7
        for before, after in itertools.pairwise(turns):
            assert after.turns[: len(before.turns)] == before.turns
            answer = after.turns[len(before.turns)]
            assert answer.parts[0].n_tokens == before.max_tokens


def test_a_next_turn_comes_once_its_think_time_is_over_and_not_before():
    times = [i * 0.5 for i in range(200)]
    made = asks(times, sessions=sessions(3, 3, 2, 2))
    at = {}
    for time_s, ask in zip(times, made, strict=True):
        at.setdefault(ask.session, []).append(time_s)
    gaps = [after - before for each in at.values() for before, after in itertools.pairwise(each)]
    assert min(gaps) == 2.0


def test_who_has_waited_longest_goes_first():
    # two conversations start at 0 and 1, both are due at 2 and 3, and the next arrivals are late
    made = asks([0, 1, 10, 11, 12], sessions=sessions(2, 2, 2, 2))
    first, second = made[0].session, made[1].session
    assert [ask.session for ask in made[2:4]] == [first, second]
    assert len(made[4].turns) == 1, "both are over: a new one begins"


def test_think_times_and_turns_are_drawn_from_their_ranges():
    # arrivals so dense that each turn comes as soon as it is due
    times = [i * 0.01 for i in range(20_000)]
    made = asks(times, sessions=sessions(1, 3, 1, 4))
    at = {}
    for time_s, ask in zip(times, made, strict=True):
        at.setdefault(ask.session, []).append(time_s)
    started_early = [each for each in at.values() if each[0] < 100]
    lengths = [len(each) for each in started_early]
    assert stats.chisquare([lengths.count(n) for n in (1, 2, 3)]).pvalue > 0.01
    gaps = [after - before for each in started_early for before, after in itertools.pairwise(each)]
    assert min(gaps) >= 1
    assert stats.kstest(gaps[:500], "uniform", args=(1, 3.01)).pvalue > 0.01


@given(
    st.lists(st.floats(0, 100), max_size=60).map(sorted),
    st.tuples(st.integers(1, 5), st.integers(0, 4)),
    st.tuples(st.floats(0, 20), st.floats(0, 20)),
)
def test_every_arrival_asks_and_no_conversation_is_longer_than_asked(times, turns, think):
    asked = sessions(turns[0], sum(turns), think[0], sum(think))
    made = asks(times, sessions=asked)
    assert len(made) == len(times)
    for session, each in conversations(made).items():
        assert [len(ask.turns) for ask in each] == [2 * i + 1 for i in range(len(each))]
        assert len(each) <= sum(turns)
        assert session.startswith("s-0-")


def test_the_same_name_and_seed_ask_the_same():
    asked = {"sessions": sessions(1, 4, 0, 5), "shared_prefix": {"share": 0.5, "tokens": 4}}
    assert asks(range(50), **asked) == asks(range(50), **asked)
    assert asks(range(50), **asked) != asks(range(50), name="s-1", **asked)
