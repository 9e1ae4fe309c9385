"""The keys that are good now: read from their file, and again whenever it changes."""

import logging
from pathlib import Path

from serve_app.config.tenants import KeyRing, key_ring, read_tenants
from serve_app.domain.errors import ConfigError

logger = logging.getLogger("ray.serve")

_Signature = tuple[int, int, int, int]


class KeyFile:
    """One file of tenants. Reads block: call them off the loop that serves requests.

    A file that cannot be read, or is wrong, changes nothing: the last good one stays. It is looked
    at through symbolic links, which is how Kubernetes replaces the files of a secret's volume.
    """

    def __init__(self, path: Path) -> None:
        """Read it for the first time. Raises ConfigError."""
        self.path = path
        self.problem: str | None = None
        """What is wrong with the file as it is now; None: `ring` is what it says."""
        self._signature = self._look()
        self.ring = key_ring(read_tenants(path))

    def refresh(self) -> KeyRing | None:
        """Look at the file. Returns what it says now if that is new and good."""
        signature = self._look()
        if signature == self._signature and self.problem is None:
            return None
        # Before the read: what is written in between is seen as another change, and read again.
        self._signature = signature
        try:
            ring = key_ring(read_tenants(self.path))
        except ConfigError as error:
            if self.problem != str(error):
                self.problem = str(error)
                logger.error("the last good API keys stay in force: %s", error)
            return None
        self.problem = None
        self.ring = ring
        logger.warning("API keys of %d tenants read from %s", len(ring.tenants), self.path)
        return ring

    def _look(self) -> _Signature | None:
        """What changes when the file does; None: it is not there."""
        try:
            seen = self.path.stat()
        except OSError:
            return None
        return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size
