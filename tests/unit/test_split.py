"""The assignment of keys to variants is a promise to sessions: exact, even, and stable."""

import json
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from serve_app.domain.units import BP_TOTAL
from serve_app.routing.split import assign

LOCAL = {"bf16": 4000, "int8": 2000, "gptq": 2000, "awq": 2000}
GOLDEN = {
    "": "bf16",
    "0": "awq",
    "alice": "gptq",
    "bob": "int8",
    "session-1": "awq",
    "session-2": "gptq",
    "dürer": "int8",
    "漢字": "bf16",
    "\ud800": "bf16",
    "a" * 300: "int8",
}
"""Written down: whatever changes one of these moves running sessions to another variant."""

KEYS = [f"session-{number}" for number in range(10_000)]
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=12)
any_key = st.text(st.characters(), max_size=40)  # surrogates included


@pytest.mark.parametrize(("key", "variant"), GOLDEN.items(), ids=lambda item: ascii(item)[:20])
def test_golden_assignments(key, variant):
    assert assign(key, LOCAL) == variant


@pytest.mark.parametrize(
    "shares_bp",
    [
        LOCAL,
        {"a": 9900, "b": 99, "c": 1},
        {"a": 3333, "b": 3333, "c": 3334},
        {"z": 5000, "a": 5000},
    ],
    ids=str,
)
def test_ten_thousand_sessions_spread_by_the_basis_points(shares_bp):
    counts = Counter(assign(key, shares_bp) for key in KEYS)
    observed = [counts[name] for name in shares_bp]
    result = chisquare(observed, [len(KEYS) * share / BP_TOTAL for share in shares_bp.values()])
    assert result.pvalue > 0.001, (observed, result)


def test_two_splits_over_the_same_keys_are_independent_of_each_other():
    """A second model's split must not send the same users to its first variant again."""
    first = {key for key in KEYS if assign(key, {"a": 5000, "b": 5000}) == "a"}
    both = sum(assign(key, {"c": 5000, "d": 5000}) == "c" for key in first)
    assert chisquare([both, len(first) - both]).pvalue > 0.001


@given(any_key, st.dictionaries(names, st.integers(0, BP_TOTAL), min_size=2, max_size=6))
def test_a_share_of_zero_is_never_chosen(key, shares_bp):
    if any(shares_bp.values()):
        assert shares_bp[assign(key, shares_bp)] > 0


@given(any_key, names)
def test_a_single_variant_gets_everything(key, name):
    assert assign(key, {name: BP_TOTAL}) == name


@given(any_key, st.permutations(list(LOCAL)))
def test_the_order_in_the_file_does_not_matter(key, order):
    assert assign(key, {name: LOCAL[name] for name in order}) == assign(key, LOCAL)


@st.composite
def proportional_changes(draw):
    """Two splits that differ in one variant's share; the others keep their ratio exactly."""
    weights = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    others = {f"v{number}": weight for number, weight in enumerate(weights)}
    steps = BP_TOTAL // sum(weights)
    low, high = sorted(draw(st.tuples(*2 * [st.integers(1, steps)])))

    def split(scale):
        shares = {name: weight * scale for name, weight in others.items()}
        return {"new": BP_TOTAL - sum(shares.values()), **shares}

    return split(high), split(low)


@given(any_key, proportional_changes())
def test_a_proportional_change_moves_no_key_between_the_others(key, splits):
    before, after = splits  # "new" grows
    ratios = {Fraction(after[name], before[name]) for name in before if name != "new"}
    assert len(ratios) == 1  # of the test itself
    assert assign(key, after) in {assign(key, before), "new"}


def test_growing_a_canary_moves_only_the_keys_that_it_gains():
    canary = [{"new": share, "a": 10_000 - share} for share in (0, 100, 2500, 5000, 10_000)]
    owners = [{key for key in KEYS if assign(key, split) == "new"} for split in canary]
    assert all(smaller <= larger for smaller, larger in pairwise(owners))
    assert not owners[0]
    assert len(owners[-1]) == len(KEYS)


@pytest.mark.parametrize("seed", ["0", "12345"])
def test_another_process_with_another_hash_seed_agrees(seed):
    code = (
        "import json, sys; from serve_app.routing.split import assign; "
        "keys, shares = json.load(sys.stdin); print(json.dumps([assign(k, shares) for k in keys]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([list(GOLDEN), LOCAL]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert json.loads(done.stdout) == list(GOLDEN.values())
