"""Whether replicas can be packed onto GPUs: exact for few, first-fit decreasing beyond. Pure."""

from functools import cache

from serve_app.domain.units import BP_TOTAL

EXACT_UP_TO = 14
"""Replicas up to which a failed first fit is checked by trying everything."""


class Shelf:
    """GPUs of one type that are filled one replica after the other.

    What was put stays; where it lies may change, since only the numbers of replicas are decided
    here and Ray chooses their places.
    """

    def __init__(self, n_gpus: int) -> None:
        self._n_gpus = n_gpus
        self._sizes: list[int] = []
        self._free: list[int] = [BP_TOTAL] * n_gpus
        self._too_large: int | None = None

    def put(self, size_bp: int, gpus: int = 1) -> bool:
        """Add a replica of `size_bp` on each of `gpus` GPUs; False, and nothing changes, if it
        cannot be packed together with what is there.
        """
        if self._too_large is not None and size_bp * gpus >= self._too_large:
            return False
        sizes = [size_bp] * gpus
        if self._place(sizes):
            self._sizes += sizes
            return True
        packed = _first_fit_decreasing([*self._sizes, *sizes], self._n_gpus)
        if packed is not None:
            self._free = packed
            self._sizes += sizes
            return True
        if len(self._sizes) + gpus <= EXACT_UP_TO and fits([*self._sizes, *sizes], self._n_gpus):
            self._sizes += sizes
            self._free = [0] * self._n_gpus  # places unknown: the next one is packed anew
            return True
        if gpus == 1:
            self._too_large = size_bp
        return False

    def _place(self, sizes: list[int]) -> bool:
        free = list(self._free)
        for size in sizes:
            for index, room in enumerate(free):
                if size <= room:
                    free[index] -= size
                    break
            else:
                return False
        self._free = free
        return True


def fits(sizes_bp: list[int], n_gpus: int) -> bool:
    """Whether the sizes fit into `n_gpus` GPUs, by trying every distinct placement."""
    ordered = tuple(sorted(sizes_bp, reverse=True))
    if sum(ordered) > n_gpus * BP_TOTAL:
        return False

    @cache
    def place(index: int, free: tuple[int, ...]) -> bool:
        if index == len(ordered):
            return True
        size = ordered[index]
        for room in sorted({room for room in free if room >= size}):
            left = list(free)
            left.remove(room)
            left.append(room - size)
            if place(index + 1, tuple(sorted(left))):
                return True
        return False

    return place(0, (BP_TOTAL,) * n_gpus)


def _first_fit_decreasing(sizes_bp: list[int], n_gpus: int) -> list[int] | None:
    """Room left on each GPU, or None if this rule does not get all of them in."""
    free = [BP_TOTAL] * n_gpus
    for size in sorted(sizes_bp, reverse=True):
        for index, room in enumerate(free):
            if size <= room:
                free[index] -= size
                break
        else:
            return None
    return free
