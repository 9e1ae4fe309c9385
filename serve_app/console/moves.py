"""How many sessions a change of the split moves, before it is made.

The split is weighted rendezvous hashing: variant i draws an exponential number with its share w_i
as the rate, and the lowest draw wins (`serve_app.routing.split`). Under shares w and v with the
same draws, i wins both exactly if every other draw exceeds both bounds, which has the probability
1 / sum_j max(w_j / w_i, v_j / v_i). What wins under w and not under v moves.
"""

from collections.abc import Mapping


def moving_share(before_bp: Mapping[str, int], after_bp: Mapping[str, int]) -> float:
    """The expected share of sessions, 0 to 1, that have another variant after the change.

    Both splits have at least one share above 0. Callers whose cohort has a split of its own, and
    those that the precision ladder moves, are not in this.
    """
    names = before_bp.keys() | after_bp.keys()
    stays = 0.0
    for name in names:
        before, after = before_bp.get(name, 0), after_bp.get(name, 0)
        if before and after:
            stays += 1.0 / sum(
                max(before_bp.get(other, 0) / before, after_bp.get(other, 0) / after)
                for other in names
            )
    return max(0.0, 1.0 - stays)
