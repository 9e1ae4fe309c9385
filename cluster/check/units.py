"""Durations and quantities as Go and Kubernetes write them."""

import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def go_duration_s(text: str) -> float | None:
    """Seconds of `1h30m`, `90s` or `90`; None for another form."""
    if re.fullmatch(r"\d+", text):
        return float(text)
    if not re.fullmatch(r"(\d+(?:\.\d+)?(?:ms|s|m|h))+", text):
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def attributes(text: str) -> dict[str, str]:
    """`a=1,b=2`, as the annotations of an ALB are written."""
    return dict(each.split("=", 1) for each in text.split(","))
