"""Where the processes of one user on one machine meet: locks, tickets, records of engines."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from serve_app.domain.errors import ConfigError

RUNTIME_DIR = "QUANTILE_RUNTIME_DIR"
"""Environment variable: a directory that all replicas on this machine see, and no other user."""


def runtime_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$QUANTILE_RUNTIME_DIR`, or `/tmp/quantile-<uid>`; made if it is not there.

    Raises ConfigError unless it is a directory that this user owns and nobody else may enter:
    whoever can write into it could have processes killed.
    """
    uid = os.getuid()
    path = Path(environ.get(RUNTIME_DIR) or f"/tmp/quantile-{uid}")  # noqa: S108 - checked below
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"cannot use {path} for the locks of engine starts: {error.strerror}; "
            f"set {RUNTIME_DIR} to a directory of your own"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise ConfigError(
            f"{path} is not safe for the locks of engine starts: need a directory of user {uid} "
            f"with mode 0700, have {stat.filemode(found.st_mode)} of user {found.st_uid}; "
            f"remove it, or set {RUNTIME_DIR} to another one"
        )
    return path
