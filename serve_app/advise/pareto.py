"""Who dominates whom when evidence has intervals, and the front that is left.

A variant dominates another where it is decided that it is not worse on any axis beyond that axis's
margin, and better on one. An axis on which nothing is decided protects both.
"""

from collections.abc import Callable, Collection, Sequence
from graphlib import TopologicalSorter

from serve_app.advise.evidence import Axis, Evidence

Dominates = Callable[[str, str], bool]


def dominates(evidence: Evidence, first: str, second: str, axes: Collection[Axis]) -> bool:
    """Whether `first` makes `second` needless on these axes. No axis: it does not."""
    if first == second:
        return False
    found = [evidence.contrast(axis, first, second) for axis in axes]
    known = [each for each in found if each is not None and each.is_not_worse]
    return len(known) == len(found) and any(each.is_better for each in known)


def front(names: Sequence[str], is_dominated_by: Dominates) -> tuple[str, ...]:
    """The variants that are left, in the order given; `is_dominated_by(second, first)`.

    Each variant that is not on the front is dominated by one that is, and none on it by another on
    it (the kernel of the relation). "Not worse within a margin" is not transitive, so dominance may
    run in a circle: within one nobody is called the better, and the circle as a whole stays or
    is measured against the others.
    """
    edges = {name: {o for o in names if o != name and is_dominated_by(name, o)} for name in names}
    above = {name: _reachable(name, edges) for name in names}
    proper = {name: {o for o in edges[name] if name not in above[o]} for name in names}
    kept: set[str] = set()
    for name in TopologicalSorter(proper).static_order():
        if not proper[name] & kept:
            kept.add(name)
    return tuple(name for name in names if name in kept)


def pareto_front(
    evidence: Evidence, names: Sequence[str], axes: Collection[Axis]
) -> tuple[str, ...]:
    """The front of these variants on these axes."""
    return front(names, lambda second, first: dominates(evidence, first, second, axes))


def dominator(
    evidence: Evidence, name: str, on_front: Sequence[str], axes: Collection[Axis]
) -> str | None:
    """Who of the front makes a variant needless; None for one of the front itself."""
    return next((each for each in on_front if dominates(evidence, each, name, axes)), None)


def _reachable(name: str, edges: dict[str, set[str]]) -> set[str]:
    """All above `name`: those that dominate it, and those that dominate them."""
    found: set[str] = set()
    todo = [name]
    while todo:
        new = edges[todo.pop()] - found
        found |= new
        todo += new
    return found
