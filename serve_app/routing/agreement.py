"""How much two answers to one request agree. Pure.

Texts are compared in three grains. Exact: the same text. Normalised: the same words, whatever their
case, spacing and punctuation. Token prefix: how far they run together, as greedy answers of two
variants are alike up to the first token that differs and unrelated from there on.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_PUNCTUATION = re.compile(
    r"""[;!?'"()\[\]{}*_#\\`‐‑‒–—―‘’‚‛“”„‟…·«»¡¿、。！？；「」（）]|[.,:/-](?!\d)"""
)
"""The second set is part of a number before a digit: 3.5, -1, 10:30. Symbols (+ = < > $ %) stay."""

Unit = Literal["token", "word"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says. Choices are joined by newlines, in the order of their index."""

    text: str
    """Reasoning, content, and tool calls as `name(arguments)`."""
    finish_reason: str | None = None
    """Of several choices, joined by commas; None where any is missing."""
    token_ids: tuple[int, ...] | None = None
    """None unless the answer tells every token of its text (`return_token_ids` in vLLM)."""
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How much a candidate's answer agrees with the primary's."""

    exact: bool
    normalised: bool
    token_prefix: float
    """Share of the common prefix in the longer of the two, from 0 to 1, in units."""
    length_ratio: float | None
    """The candidate's length over the primary's, in units; None where the primary's is empty."""
    same_finish: bool | None
    """Whether both ended for the same reason; None where one does not say."""
    unit: Unit
    """Token ids where both answers tell them; else words, cut at white space. A script without
    spaces is one word per line: its prefix agreement is all or nothing."""


def agree(primary: Reading, candidate: Reading) -> Agreement:
    """Compare two answers to one request."""
    unit: Unit = "token"
    first: Sequence[object] | None = primary.token_ids
    second: Sequence[object] | None = candidate.token_ids
    if first is None or second is None:
        unit, first, second = "word", primary.text.split(), candidate.text.split()
    exact = primary.text == candidate.text
    reasons = primary.finish_reason, candidate.finish_reason
    longer = max(len(first), len(second))
    return Agreement(
        exact=exact,
        normalised=exact or normalised(primary.text) == normalised(candidate.text),
        token_prefix=common_prefix(first, second) / longer if longer else 1.0,
        length_ratio=len(second) / len(first) if first else None,
        same_finish=None if None in reasons else reasons[0] == reasons[1],
        unit=unit,
    )


def normalised(text: str) -> str:
    """`text` in NFKC, case folded, without punctuation, words apart by one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_PUNCTUATION.sub(" ", folded).split())


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items both have in common from the start.

    Halves the range by comparing slices: on long answers several times as fast as item by item.
    """
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
