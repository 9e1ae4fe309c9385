"""Deterministic sticky assignment of keys to variants: weighted rendezvous hashing.

Every variant draws a number for the key from a hash; the draw is exponential with the variant's
share as its rate, and the lowest draw wins. Hence (Thaler & Ravishankar 1998; weights by
Schindelhauer & Schomaker 2005):

- a variant gets exactly its share of the keys in expectation, to the basis point;
- the answer depends on nothing but the key and the shares: every router replica agrees, and so does
  the next process;
- a change of shares moves no key between two variants whose shares kept their ratio. Cutting
  0..10,000 into consecutive intervals does not have this property for three variants or more:
  see `serve_app/decisions/0003-rendezvous-split.md`.
"""

import math
from collections.abc import Mapping
from hashlib import blake2b

_UNIT = 2.0**-64


def assign(key: str, shares_bp: Mapping[str, int]) -> str:
    """The variant that owns `key` under `shares_bp` (basis points; at least one above 0)."""
    key_bytes = key.encode("utf-8", "surrogatepass")
    best_name, best_draw = "", math.inf
    for name, share in shares_bp.items():
        if not share:
            continue
        digest = blake2b(key_bytes, digest_size=8, salt=_salt(name)).digest()
        uniform = (int.from_bytes(digest, "big") + 1) * _UNIT  # in (0, 1]
        draw = -math.log(uniform) / share
        if draw < best_draw:
            best_name, best_draw = name, draw
    return best_name


def _salt(name: str) -> bytes:
    """16 bytes that identify a variant; cached, as names are few and keys are many."""
    salt = _SALTS.get(name)
    if salt is None:
        salt = _SALTS[name] = blake2b(name.encode(), digest_size=16).digest()
    return salt


_SALTS: dict[str, bytes] = {}
