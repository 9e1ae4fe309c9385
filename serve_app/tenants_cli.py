"""`quantile keys`: make API keys, and look after the file that holds their digests."""

import contextlib
import datetime
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from serve_app.config.admission import KEYS_FILE_VARIABLE
from serve_app.config.tenants import (
    KEY_PREFIX,
    LimitsConfig,
    TenantEntry,
    TenantsFile,
    digest_of,
    parse_tenants,
    read_tenants,
)
from serve_app.domain.errors import ConfigError

_HEAD = "# Written by `quantile keys`. Keys are SHA-256 digests: they cannot be read back.\n"
_HINT_LENGTH = len(KEY_PREFIX) + 4
_RANDOM_BYTES = 32

keys = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make and look after API keys."
)
_File = Annotated[
    Path, typer.Option("--file", envvar=KEYS_FILE_VARIABLE, help="The secret file of tenants.")
]


@keys.command()
def add(
    tenant: Annotated[str, typer.Argument(help="Whose key; made if it is not in the file.")],
    file: _File,
    cohort: Annotated[str | None, typer.Option(help="The cohort that it belongs to.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="First day without it, YYYY-MM-DD (UTC).")
    ] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Limit.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once after a pause.")] = None,
    concurrent_requests: Annotated[int | None, typer.Option(help="Limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Limit.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Limit.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="An alias it may name; default all.")
    ] = None,
    variants: Annotated[
        list[str] | None, typer.Option("--variant", help="One that may serve it; default all.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May change the split.")] = False,
) -> None:
    """Make a key, print it once, and write its digest into the file.

    Without options a tenant that exists keeps its limits and has one key more: hand the new one
    out, then take the old one from the file. Running routers see it within two seconds.

    Example: quantile keys add acme --file keys.yaml --cohort paying --requests-per-minute 600
    """
    settings: dict[str, Any] = {
        "cohort": cohort,
        "requests_per_minute": requests_per_minute,
        "burst": burst,
        "concurrent_requests": concurrent_requests,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
        "models": models,
        "variants": variants,
        "admin": admin,
    }
    key = KEY_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    content = _with_key(file, tenant, key, expires, settings)
    _write(file, content)
    print(f"{tenant}'s new key is in {file} as a digest; this is shown once:", file=sys.stderr)
    print(key)


def _with_key(
    file: Path, tenant: str, key: str, expires: str | None, settings: dict[str, Any]
) -> str:
    """The file's content with the key added, as it will be written. Raises ConfigError."""
    values: dict[str, Any] = {"tenants": {}}
    if file.exists():
        read_tenants(file)  # what is broken is not written over
        text = file.read_text()
        if any(line.lstrip().startswith("#") for line in text.splitlines() if line + "\n" != _HEAD):
            raise ConfigError(
                f"{file} has comments, which writing it anew would lose. Add by hand, under "
                f"`keys` of the tenant: {{sha256: <`quantile keys hash` of a new key>}}"
            )
        values = yaml.load(text, Loader=yaml.CSafeLoader)
    entry = values["tenants"].setdefault(tenant, {"keys": []})
    entry.update({name: value for name, value in settings.items() if value})
    added = {"sha256": digest_of(key), "hint": key[:_HINT_LENGTH], "created": str(_today())}
    entry["keys"] = [*entry["keys"], added | ({"expires": expires} if expires else {})]
    dumped = json.dumps(values, indent=2, default=str)
    if file.suffix != ".json":
        dumped = _HEAD + yaml.safe_dump(json.loads(dumped), sort_keys=False)
    parse_tenants(dumped, str(file))  # before anything is written
    return dumped + ("" if dumped.endswith("\n") else "\n")


def _write(file: Path, content: str) -> None:
    """Replace the file at once, readable by its owner only: a router never sees half of it."""
    target = file.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.chmod(mode)
        draft.replace(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        raise


@keys.command("hash")
def hash_key() -> None:
    """Print the digest of a key that is given on standard input.

    Not as an argument: those can be read in the list of processes, and stay in a shell's history.

    Example: printf %s "$KEY" | quantile keys hash
    """
    key = sys.stdin.read().strip()
    if len(key) < _RANDOM_BYTES or any(character.isspace() for character in key):
        raise ConfigError(
            f"a key needs at least {_RANDOM_BYTES} characters without spaces, have {len(key)}: it "
            "is kept by a fast hash, which is safe for long random keys only (`quantile keys add`)"
        )
    print(digest_of(key))


@keys.command("list")
def list_tenants(file: _File) -> None:
    """Print the tenants, their keys' first characters, and their limits.

    Example: quantile keys list --file keys.yaml
    """
    for name, tenant in read_tenants(file).tenants.items():
        print(f"{name} (cohort {tenant.cohort})" if tenant.cohort else name)
        for title, told in _told(tenant).items():
            print(f"  {title:9}{told}")


def _told(tenant: TenantEntry) -> dict[str, str]:
    found = {name: getattr(tenant, name) for name in LimitsConfig.model_fields}
    limits = [f"{name} {value:,}" for name, value in found.items() if value is not None]
    return {
        "keys": ", ".join(
            f"{key.hint or key.sha256[:8]}..." + (f" until {key.expires}" if key.expires else "")
            for key in tenant.keys
        ),
        "limits": ", ".join(limits) or "none",
        "models": "all" if tenant.models is None else ", ".join(tenant.models),
        "variants": "all" if tenant.variants is None else ", ".join(tenant.variants),
    }


@keys.command("check")
def check_file(file: _File) -> None:
    """Read the file as a router would. Exit code 2 and what is wrong, or how many keys open what.

    Example: quantile keys check --file keys.yaml
    """
    found = read_tenants(file)
    console = Console(markup=False, highlight=False)
    for warning in _warnings(file, found):
        console.print(f"warning: {warning}", soft_wrap=True)
    n_keys = sum(len(tenant.keys) for tenant in found.tenants.values())
    console.print(f"{file} is sound: {n_keys} keys of {len(found.tenants)} tenants")


def _warnings(file: Path, found: TenantsFile) -> list[str]:
    today = _today()
    warnings = [
        f"{name}: the key {key.hint or key.sha256[:8]}... has expired ({key.expires})"
        for name, tenant in found.tenants.items()
        for key in tenant.keys
        if key.expires and key.expires <= today
    ]
    if file.stat().st_mode & 0o022:
        warnings.append(f"others may write to {file}, and so let themselves in: chmod go-w")
    return warnings


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
