"""The four verdicts of a judgement on evidence."""

from enum import StrEnum


class Verdict(StrEnum):
    """Stopping early, or too little evidence, is never a pass."""

    PASS = "pass"  # noqa: S105 a verdict, no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"
    """The evidence is broken, so that it says nothing."""
