"""What admission is given in tests: a clock, a scope with a key, a file of tenants, its counts."""

import hashlib
import json
from pathlib import Path
from typing import Any

from serve_app.telemetry.admission_counts import AdmissionCounts

NOON_S = 43_200.0


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class RecordingAdmissionMetrics:
    """Implements `serve_app.telemetry.metrics.AdmissionMetrics`."""

    def __init__(self) -> None:
        self.reports: list[AdmissionCounts] = []

    def report(self, counts: AdmissionCounts) -> None:
        self.reports.append(counts)


def key_of(name: str) -> str:
    """A key that a test can know."""
    return f"qtl-test-key-of-{name}-0123456789"


def tenant_entry(name: str, **more: Any) -> dict[str, Any]:
    """A tenant with one key, `key_of(name)`."""
    digest = hashlib.sha256(key_of(name).encode()).hexdigest()
    return {"keys": [{"sha256": digest}], **more}


def write_tenants(path: Path, **tenants: dict[str, Any]) -> Path:
    """A file of tenants, `write_tenants(path, acme={"cohort": "paying"})`."""
    entries = {name: tenant_entry(name, **more) for name, more in tenants.items()}
    path.write_text(json.dumps({"tenants": entries}))
    return path


def asks(name: str | None = None, *more: tuple[bytes, bytes], path: str = "/v1/x") -> Any:
    """The scope of a request with a tenant's key, or with none."""
    headers = [*more]
    if name is not None:
        headers.append((b"authorization", f"Bearer {key_of(name)}".encode()))
    return {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
