"""The internal token: a variant asks for it before it answers, so that only the router gets in.

In a cluster it comes from a secret, as `QUANTILE_INTERNAL_TOKEN` or, for a mounted file,
`QUANTILE_INTERNAL_TOKEN_FILE`. On one machine neither is needed: the first process makes a
token that only its user can read, and the others read it.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from serve_app.domain.errors import ConfigError

MIN_TOKEN_LENGTH = 16


def internal_token(environ: Mapping[str, str] = os.environ) -> str:
    """The token that the router and its variants share. Raises ConfigError if it is unfit."""
    token = environ.get("QUANTILE_INTERNAL_TOKEN")
    if token is not None:  # set but blank is a secret that went missing, not a wish for none
        return _checked(token.strip(), "QUANTILE_INTERNAL_TOKEN")
    file = environ.get("QUANTILE_INTERNAL_TOKEN_FILE")
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise ConfigError(f"QUANTILE_INTERNAL_TOKEN_FILE names {file}, which is not a file")
        return _checked(path.read_text().strip(), file)
    return _own_token(_state_dir(environ) / "internal-token")


def _checked(token: str, source: str) -> str:
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConfigError(
            f"the internal token from {source} has {len(token)} characters, needs at least "
            f"{MIN_TOKEN_LENGTH}: make one with `openssl rand -hex 32`"
        )
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(
            f"the internal token from {source} travels in a header and needs printable ASCII "
            "without spaces: make one with `openssl rand -hex 32`"
        )
    return token


def _own_token(path: Path) -> str:
    """Read this machine's token, making it first if there is none; safe for racing processes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        # link() is atomic and refuses to replace: the first of the racing processes wins.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return _checked(path.read_text().strip(), str(path))


def _state_dir(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "quantile"
