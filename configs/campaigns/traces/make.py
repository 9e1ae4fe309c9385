"""Writes the synthetic trace of this folder: no user ever sent these requests.

    python configs/campaigns/traces/make.py > configs/campaigns/traces/synthetic.csv

80 seconds in the format of the Azure LLM traces, with their order of lengths: a rate that swings
between 2 and 6 requests/s every 40 s, gamma gaps of shape 0.5 around it, and lognormal lengths of
which one in four is a retrieval with a long context and a short answer.
"""

import math
import random
from collections.abc import Iterator
from datetime import datetime, timedelta

SEED = 2023
LENGTH_S = 80.0
BURSTINESS = 0.5
START = datetime(2026, 1, 1)


def lines() -> Iterator[str]:
    """The header and one line per request."""
    rng = random.Random(SEED)
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    at_s = 0.0
    while at_s < LENGTH_S:
        is_retrieval = rng.random() < 0.25
        n_input = lognormal(rng, 3500, 0.4) if is_retrieval else lognormal(rng, 700, 0.9)
        n_output = lognormal(rng, 120, 0.5) if is_retrieval else lognormal(rng, 250, 0.6)
        time = (START + timedelta(seconds=at_s)).isoformat(" ", "microseconds")
        yield f"{time}0,{n_input},{n_output}"  # seven digits, as in 2023
        rate_per_s = 4 + 2 * math.sin(2 * math.pi * at_s / 40)
        at_s += rng.gammavariate(BURSTINESS, 1 / (BURSTINESS * rate_per_s))


def lognormal(rng: random.Random, median: float, sigma: float) -> int:
    """A length in tokens, 1 or more."""
    return max(1, round(median * math.exp(rng.gauss(0, sigma))))


if __name__ == "__main__":
    print("\n".join(lines()))
