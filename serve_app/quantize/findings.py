"""What a preflight finds: each with what is needed, what is there, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serve_app.domain.errors import ConfigError


@dataclass(frozen=True)
class Finding:
    """An error stops the job or the engine; a warning does not."""

    severity: Literal["error", "warning"]
    code: str
    """Stable name, such as `group_size`."""
    need: str
    have: str
    fix: str

    def describe(self) -> str:
        """`error group_size: need ..., have ...; to do: ...`."""
        return f"{self.severity} {self.code}: need {self.need}; have {self.have}; to do: {self.fix}"


def error(code: str, need: str, have: str, fix: str) -> Finding:
    """A finding that stops."""
    return Finding("error", code, need, have, fix)


def warning(code: str, need: str, have: str, fix: str) -> Finding:
    """A finding to know of."""
    return Finding("warning", code, need, have, fix)


def require_none(findings: Sequence[Finding], where: str) -> None:
    """Raise `ConfigError` that lists every error, if there is one."""
    errors = [each for each in findings if each.severity == "error"]
    if errors:
        listed = "\n".join(f"  {each.describe()}" for each in errors)
        raise ConfigError(f"{where}: {len(errors)} error(s)\n{listed}")
