"""The file of tenants: who may ask, by which keys, for what, and how much.

A secret file in YAML or JSON; keys are in it as SHA-256 digests only. They are random and of 256
bits, so a digest gives nothing away and needs no salt and no slow hash.

    tenants:
      acme:
        cohort: paying
        keys: [{sha256: <64 hexadecimal digits>, hint: qtl-3fA9, expires: 2027-03-01}]
        requests_per_minute: 600
        tokens_per_day: 2000000
"""

import datetime
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from serve_app.config.strict import ModelName, StrictModel, VariantName
from serve_app.domain.errors import ConfigError
from serve_app.routing.admission import Limits

KEY_PREFIX = "qtl-"
"""Every key that `quantile keys` makes begins so: secret scanners can tell."""
ANONYMOUS, OTHER = "anonymous", "other"
MAX_FILE_BYTES = 4 * 1024 * 1024

TenantName = VariantName
_RESERVED = (ANONYMOUS, OTHER)
_BURST_S = 10.0


class LimitsConfig(StrictModel):
    """What one tenant may take; what is not set is without limit.

    Each router replica counts for itself: with N replicas a tenant may get up to N times as much,
    unless `admission.replicas_hint` is N.
    """

    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    burst: PositiveInt | None = None
    """Requests that may come at once after a pause; default: those of ten seconds."""
    concurrent_requests: PositiveInt | None = None
    """Requests under way at once; more wait their turn, up to `admission.max_wait_s`."""
    tokens_per_minute: PositiveInt | None = None
    """Prompt and completion, refilled evenly. A request reserves what it may cost at the most."""
    tokens_per_day: PositiveInt | None = None
    """Prompt and completion, from midnight to midnight (UTC), since the replica's start."""

    @model_validator(mode="after")
    def _burst_has_a_rate(self) -> Self:
        if self.burst is not None and self.requests_per_minute is None:
            raise ValueError("`burst` is read with requests_per_minute only, which is not set")
        return self

    def to_limits(self, replicas: int = 1) -> Limits:
        """One replica's part of the limits, where `replicas` share them evenly.

        At least one request at once is everyone's, so more replicas than `burst` or
        `concurrent_requests` allow more in all.
        """
        rpm = self.requests_per_minute
        burst = self.burst or ceil((rpm or 0) * _BURST_S / 60)
        concurrent, tpm, tpd = (
            self.concurrent_requests,
            self.tokens_per_minute,
            self.tokens_per_day,
        )
        return Limits(
            requests_per_minute=None if rpm is None else rpm / replicas,
            burst=max(1.0, burst / replicas),
            concurrent=None if concurrent is None else max(1, concurrent // replicas),
            tokens_per_minute=None if tpm is None else tpm / replicas,
            tokens_per_day=None if tpd is None else tpd / replicas,
        )


class KeyEntry(StrictModel):
    """One API key of a tenant; several let it change its key without a gap."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the key's characters, in hexadecimal: `quantile keys hash`."""
    hint: Annotated[str, Field(max_length=12)] = ""
    """The key's first characters, to tell which it is."""
    created: datetime.date | None = None
    expires: datetime.date | None = None
    """The first day (UTC) on which the key opens nothing; None: it does not expire."""


class TenantEntry(LimitsConfig):
    """One tenant: its limits hold over all its keys."""

    keys: tuple[KeyEntry, ...] = Field(min_length=1)
    cohort: VariantName | None = None
    """The cohort that the router's rules put it in, whatever its headers say."""
    models: tuple[ModelName, ...] | None = None
    """Aliases that it may name; None: all."""
    variants: tuple[VariantName, ...] | None = None
    """Variants that may serve it; None: all."""
    admin: bool = False
    """Whether its keys may change the split in the console."""


class TenantsFile(StrictModel):
    """The whole file."""

    tenants: dict[TenantName, TenantEntry] = Field(min_length=1)

    @field_validator("tenants")
    @classmethod
    def _names_are_names(cls, tenants: dict[str, TenantEntry]) -> dict[str, TenantEntry]:
        for name in tenants:
            if name in _RESERVED:
                raise ValueError(f"{name!r} is a name of the router's own; take another")
            if name.startswith(KEY_PREFIX):
                raise ValueError(
                    "a tenant's name looks like an API key, and names are shown in metrics; "
                    "keys belong under `keys`, as digests (`quantile keys hash`)"
                )
        return tenants

    @model_validator(mode="after")
    def _keys_are_somebodys(self) -> Self:
        owners: dict[str, str] = {}
        for name, tenant in self.tenants.items():
            for key in tenant.keys:
                if (owner := owners.setdefault(key.sha256, name)) != name:
                    raise ValueError(f"{owner} and {name} have the same key; make one of them new")
        return self


@dataclass(frozen=True)
class Tenant:
    """A tenant as the router knows it."""

    name: str
    limits: LimitsConfig
    cohort: str | None = None
    models: frozenset[str] | None = None
    variants: frozenset[str] | None = None
    is_admin: bool = False


class Key(NamedTuple):
    """What a digest opens."""

    digest: bytes
    tenant: str
    expires_epoch_s: float | None


@dataclass(frozen=True)
class KeyRing:
    """All tenants, found by the digest of a key."""

    tenants: Mapping[str, Tenant]
    keys: Mapping[bytes, Key]

    def find(self, token: bytes, epoch_s: float) -> str | None:
        """Whose key `token` is now; None if nobody's.

        The table is searched by digest, so that the time tells of the digest at the most, which
        nobody can steer towards a stored one; the comparison takes the same time for all.
        """
        digest = hashlib.sha256(token).digest()
        key = self.keys.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        expires_s = key.expires_epoch_s
        return key.tenant if expires_s is None or epoch_s < expires_s else None


NO_KEYS = KeyRing({}, {})


def digest_of(key: str) -> str:
    """How a key is stored: its SHA-256 in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_tenants(text: str, where: str) -> TenantsFile:
    """A tenants file's content. Raises ConfigError, which quotes no value: it may be a key."""
    try:
        values = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: this is neither YAML nor JSON") from None
    try:
        return TenantsFile.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(item) for item in error.errors(include_input=False))
        raise ConfigError(f"{where}: {faults}") from None


def _fault(item: Any) -> str:
    path = ".".join(_unless_secret(str(part)) for part in item["loc"]) or "(top level)"
    if item["loc"][-1:] == ("sha256",):
        return f"{path} needs 64 hexadecimal digits: `quantile keys hash` makes them of a key"
    return f"{path}: {item['msg']}"


def _unless_secret(part: str) -> str:
    """A key may stand where a name should."""
    is_name = re.fullmatch(r"[a-z0-9_.-]{1,32}", part) and not part.startswith(KEY_PREFIX)
    return part if is_name else "(something that may be a key)"


def read_tenants(path: Path) -> TenantsFile:
    """The file at `path`. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError(
            f"cannot read the API keys of {path}: {error.strerror}; `quantile keys add` makes "
            "such a file, QUANTILE_API_KEYS_FILE and admission.keys_file say where it is"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes: is it the right file?")
    return parse_tenants(text, str(path))


def key_ring(file: TenantsFile) -> KeyRing:
    """The file as the router uses it."""
    tenants, keys = {}, {}
    for name, entry in file.tenants.items():
        limits = LimitsConfig.model_validate(
            {field: getattr(entry, field) for field in LimitsConfig.model_fields}
        )
        tenants[name] = Tenant(
            name, limits, entry.cohort, _set(entry.models), _set(entry.variants), entry.admin
        )
        for key in entry.keys:
            digest = bytes.fromhex(key.sha256)
            keys[digest] = Key(digest, name, _midnight_s(key.expires))
    return KeyRing(tenants, keys)


def _set(names: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _midnight_s(day: datetime.date | None) -> float | None:
    if day is None:
        return None
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp()
