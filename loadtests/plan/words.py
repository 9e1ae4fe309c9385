"""Made text: plain English words that a seed puts in a row.

Every word, with the space before it, is one token for the reference model's tokenizer and for
large byte-level vocabularies (all 128 are entries of Qwen's 151,643), so that a text of n words
is a prompt of about n tokens.
"""

import hashlib

TOKENS_PER_WORD = 1.0
"""Where the target's own count is not known; see above."""

_TEXT = """
about and animal apple asked at ball basket bear bell blanket blue brave bread bright broken
but called calm can castle cat city clever clock cold cover crow dark day deer dog dry duck
evening fall falling far farm food for forest found fox frog from full garden gave gentle
glad goat gold golden had happy harbor have hen hill home hungry in is joy key lake lamp
large last letter light lived lonely looked made map market met morning mouse night number
of old owl people person place proud quiet rabbit rain raining red river said silver small
stone story strong summer sun that the they things time tired to tree turtle under walked
warm was water way went were where who wind winter with wolf you
"""
WORDS = tuple(_TEXT.split())
_WORD_OF_BYTE = WORDS * (256 // len(WORDS))


def make_text(seed: int, n_words: int) -> str:
    """`n_words` words that follow from `seed`, on any machine.

    A shorter text of the same seed is the beginning of a longer one. One byte of a SHAKE-128
    stream picks one word: about 0.1 us a word.
    """
    stream = hashlib.shake_128(str(seed).encode()).digest(n_words)
    return " ".join([_WORD_OF_BYTE[byte] for byte in stream])
