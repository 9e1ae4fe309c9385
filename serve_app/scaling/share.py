"""Who gets how many replicas when the GPUs do not suffice for all that is wished. Pure.

Replicas are given out one by one: first every variant's minimum, then one to each variant that has
requests, then by pressure: `weight * demand / k` for a variant's k-th replica, what each of its
replicas would carry (the method of D'Hondt, with weights). What a variant holds counts
`HOLD_FACTOR` more, so that equal neighbours do not trade a replica to and fro. A replica is given
only if all that is given so far can be packed onto the GPUs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.scaling.fit import Shelf

HOLD_FACTOR = 1.25
"""How much more pressed another variant must be to take a replica away."""


@dataclass(frozen=True)
class Claim:
    """What one variant asks of the GPUs of one type."""

    name: str
    size_bp: int
    """What a replica takes of each of its GPUs, in basis points of one."""
    minimum: int
    wished: int
    held: int
    """Replicas decided on before."""
    demand: float
    gpus: int = 1
    """GPUs per replica; more than one under tensor parallelism."""
    weight: float = 1.0


@dataclass(frozen=True)
class Grant:
    """Replicas that a variant may have; `short` names what it wished beyond that."""

    replicas: int
    short: int


def share(n_gpus: int, claims: Iterable[Claim]) -> dict[str, Grant]:
    """Divide `n_gpus` GPUs of one type among the claims.

    Never gives more than can be packed, nor more than is wished or the minimum asks. The result
    depends on the claims alone, not on their order.
    """
    claims = sorted(claims, key=lambda claim: claim.name)
    shelf = Shelf(n_gpus)
    given = dict.fromkeys((claim.name for claim in claims), 0)
    refused: set[str] = set()
    wanted = {claim.name: max(claim.minimum, claim.wished) for claim in claims}
    turns = [(_rank(claim, k), claim) for claim in claims for k in range(1, wanted[claim.name] + 1)]
    for _, claim in sorted(turns, key=lambda turn: (turn[0], turn[1].name)):
        if claim.name in refused:
            continue
        if shelf.put(claim.size_bp, claim.gpus):
            given[claim.name] += 1
        else:
            refused.add(claim.name)
    return {name: Grant(n, wanted[name] - n) for name, n in given.items()}


def _rank(claim: Claim, k: int) -> tuple[int, float]:
    """Place of a variant's k-th replica in the order of giving; the smallest comes first."""
    pressure = claim.weight * claim.demand / k * (HOLD_FACTOR if k <= claim.held else 1.0)
    if k <= claim.minimum:
        return 0, -claim.weight / k
    if k == 1:
        return (1 if claim.held else 2), -pressure
    return 3, -pressure
