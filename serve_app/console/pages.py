"""The console's files as they are served: a page, a script, a style sheet; nothing is built."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing inline, nothing foreign, and no text becomes markup."""

_FILES = {
    "/console": ("console.html", "text/html; charset=utf-8"),
    "/console/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console/console.js": ("console.js", "text/javascript; charset=utf-8"),
}


@dataclass(frozen=True)
class Page:
    """One file."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


@cache
def page_at(path: str) -> Page | None:
    """The file that is served at a path; None where there is none. They hold no facts."""
    if path not in _FILES:
        return None
    name, content_type = _FILES[path]
    body = files(__package__).joinpath(name).read_bytes()
    headers = {
        "content-type": content_type,
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Page(body, tuple((key.encode(), value.encode()) for key, value in headers.items()))
