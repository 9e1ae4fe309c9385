"""What `quantile simulate` is told by options and files, as the nouns of a simulation."""

import math
from collections.abc import Sequence
from pathlib import Path

from serve_app.config.ladder import LadderConfig
from serve_app.config.parse import parse, read_yaml
from serve_app.domain.errors import ConfigError
from serve_app.domain.quality import decode_report
from serve_app.simulate.curves import ServiceCurve
from serve_app.simulate.measured import read_curves


def read_all(paths: Sequence[Path]) -> list[ServiceCurve]:
    """The curves of several measurements; of a variant that two have, the first."""
    found: dict[str, ServiceCurve] = {}
    for path in paths:
        for curve in read_curves(path):
            found.setdefault(curve.variant, curve)
    return list(found.values())


def ladder_config(
    path: Path | None, rungs: str | None, ttft_ms: float | None, tpot_ms: float | None
) -> LadderConfig:
    """The ladder of a file, or of rungs and an SLO. Raises ConfigError."""
    if (path is None) == (rungs is None):
        raise ConfigError("give the ladder by --config FILE, or by --rungs and an SLO")
    if path is not None:
        if ttft_ms is not None or tpot_ms is not None:
            raise ConfigError(f"{path} has the SLO: leave out --ttft-ms and --tpot-ms")
        raw = read_yaml(path)
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} needs the keys of a ladder, as `rungs: [bf16, int8]`")
        return parse(LadderConfig, raw.get("ladder", raw), where=str(path))
    values = {
        "rungs": [name.strip() for name in (rungs or "").split(",")],
        "ttft_p95_ms": ttft_ms,
        "tpot_p95_ms": tpot_ms,
    }
    return parse(LadderConfig, values, where="--rungs")


def replica_counts(texts: Sequence[str]) -> dict[str, int]:
    """`gptq=2` and the like. Raises ConfigError."""
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdecimal() or not int(number):
            raise ConfigError(f"--replicas {text}: write NAME=N, as gptq=2")
        found[name] = int(number)
    return found


def expected_quality(texts: Sequence[str], report: Path | None) -> dict[str, float]:
    """Per variant, from `int8=0.998` and the like or from a report. Raises ConfigError."""
    if bool(texts) == (report is not None):
        raise ConfigError("give the quality by --quality NAME=VALUE, or by --quality-report FILE")
    if report is not None:
        try:
            decoded = decode_report(report.read_bytes(), str(report))
        except OSError as error:
            raise ConfigError(f"cannot read {report}: {error.strerror}") from None
        scores = {each.name: each.score for each in decoded.variants}
        found = {name: score.value for name, score in scores.items() if score is not None}
    else:
        found = dict(_named_value(text) for text in texts)
    for name, value in found.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"the quality of {name} is {value:g}: need a number above 0")
    return found


def _named_value(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ConfigError(f"--quality {text}: write NAME=VALUE, as int8=0.998") from None
