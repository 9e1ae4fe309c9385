"""How much two answers agree, and what that must not depend on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.routing.agreement import Agreement, Reading, agree, common_prefix, normalised


def texts(first: str, second: str) -> Agreement:
    return agree(Reading(first), Reading(second))


def test_the_same_text_agrees_in_everything():
    found = agree(Reading("a b c", "stop"), Reading("a b c", "stop"))
    assert found == Agreement(True, True, 1.0, 1.0, True, "word")


def test_spacing_case_and_punctuation_do_not_count_once_normalised():
    found = texts("The answer is: **Paris**.", "the  answer is “Paris”")
    assert (found.exact, found.normalised) == (False, True)
    assert found.token_prefix == 0.0  # "The" is not "the"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("It is 3.5", "It is 35"),
        ("x = -1", "x = 1"),
        ("at 10:30", "at 1030"),
        ("5%", "5"),
        ("a < b", "a > b"),
        ("$5", "5"),
        ("1/2", "12"),
        ("no", "now"),
    ],
)
def test_what_changes_the_meaning_stays_different(first, second):
    assert not texts(first, second).normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**3.5**, (2) and `x`", "3.5 2 and x"),
        ("Well-known: 5.", "well known 5"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("STRASSE straße", "strasse strasse"),
        ("是的。", "是的"),
        (" \n\t", ""),
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


def test_prefix_is_the_share_of_the_longer_answer_in_words():
    found = texts("one two three four", "one two 3 four five six seven eight")
    assert found.token_prefix == 2 / 8
    assert found.length_ratio == 8 / 4
    assert found.unit == "word"


def test_token_ids_are_the_unit_where_both_answers_tell_them():
    first, second = Reading("aab", token_ids=(1, 1, 2)), Reading("aac", token_ids=(1, 1, 3, 4))
    assert agree(first, second).token_prefix == 2 / 4
    assert agree(first, second).unit == "token"
    assert agree(first, Reading("aab")).unit == "word"


def test_two_empty_answers_agree_and_have_no_ratio():
    assert texts("", "") == Agreement(True, True, 1.0, None, None, "word")
    assert texts("", "a").token_prefix == 0.0
    assert texts("", "a").length_ratio is None
    assert texts("a", "").length_ratio == 0.0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [("stop", "stop", True), ("stop", "length", False), ("stop", None, None), (None, None, None)],
)
def test_a_missing_finish_reason_is_not_a_different_one(first, second, same):
    assert agree(Reading("a", first), Reading("a", second)).same_finish is same


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_the_longest(first, second):
    n = common_prefix(first, second)
    assert first[:n] == second[:n]
    assert n == min(len(first), len(second)) or first[n] != second[n]


@given(st.text(), st.text())
def test_agreement_is_within_its_bounds_and_grows_coarser(first, second):
    found = texts(first, second)
    assert 0.0 <= found.token_prefix <= 1.0
    assert found.normalised or not found.exact
    assert found.exact is texts(second, first).exact
    assert found.token_prefix == texts(second, first).token_prefix


@given(st.text())
def test_normalising_twice_changes_no_more(text):
    assert normalised(normalised(text)) == normalised(text)
