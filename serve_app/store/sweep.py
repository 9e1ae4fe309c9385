"""What leaves a node's cache, and why: what was not used for long, then what was used longest ago
until the rest fits. What anybody uses stays, whatever its age."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.store.cache import Cache, Entry


@dataclass(frozen=True)
class Limits:
    """`max_age_s` since the last use began, `max_bytes` of all together; None is no limit."""

    max_age_s: float | None = None
    max_bytes: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What happens to one entry: `reason` it is dropped for; None, it stays."""

    entry: Entry
    is_used: bool
    reason: str | None


def judge(
    entries: Sequence[Entry], used: Callable[[Entry], bool], limits: Limits, now_unix_s: float
) -> list[Verdict]:
    """Decide on every entry, the one used longest ago first."""
    left_bytes = sum(entry.n_bytes for entry in entries)
    verdicts = []
    for entry in sorted(entries, key=lambda each: (each.used_unix_s, each.name)):
        reason = None
        is_used = used(entry)
        if not is_used:
            reason = _reason(entry, limits, now_unix_s, left_bytes)
        if reason:
            left_bytes -= entry.n_bytes
        verdicts.append(Verdict(entry, is_used, reason))
    return verdicts


def sweep(cache: Cache, limits: Limits, now_unix_s: float, dry_run: bool = False) -> list[Verdict]:
    """Judge the cache and drop what is to go; tells what was, or would be, done.

    What came into use since it was judged stays, and is told as used.
    """
    verdicts = judge(cache.entries(), cache.is_used, limits, now_unix_s)
    if dry_run:
        return verdicts
    cache.empty_trash()
    return [
        Verdict(each.entry, True, None) if each.reason and not cache.drop(each.entry) else each
        for each in verdicts
    ]


def _reason(entry: Entry, limits: Limits, now_unix_s: float, left_bytes: int) -> str | None:
    if limits.max_age_s is not None and now_unix_s - entry.used_unix_s > limits.max_age_s:
        return "not used for long"
    if limits.max_bytes is not None and left_bytes > limits.max_bytes:
        return "used longest ago"
    return None
