"""Hosts on one machine: each with its own network, processes, /dev/shm and temporary files.

To be used as the first process of a lab (`lab.run`): it changes that namespace's mounts.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

LAB_IP = "10.77.0.1"
"""Of the process that drills; every host reaches it."""
_PRIVATE = ("/tmp/ray", "/tmp/haproxy-serve")
"""Where Ray and Serve keep files and sockets: of each host its own."""
_NAMESPACES = (
    "ip netns exec {netns} unshare --pid --fork --kill-child --mount-proc --mount --ipc -- "
    "/bin/sh -c"
)
_START = f"""
set -e
mount -t tmpfs -o size=1g tmpfs /dev/shm
for place in {" ".join(_PRIVATE)}; do mkdir -p "$0$place"; mount --bind "$0$place" "$place"; done
exec "$@"
"""


class Host:
    """A running host. Its first process is the command; when that is killed, all of it is."""

    def __init__(self, cable: str, process: subprocess.Popen[bytes]) -> None:
        self._cable = cable
        self._process = process

    @property
    def is_alive(self) -> bool:
        """Whether its first process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to every process of the host; its network stack answers what was open."""
        self._process.kill()  # `unshare --kill-child`: with it the first process, with that all
        self._process.wait()

    def lose_power(self) -> None:
        """All ends, and not one packet tells anybody. Its address cannot be used again."""
        _ip(f"link set {self._cable} down")
        self.kill()


class Lan:
    """The network between hosts. `start` makes one; the end of the lab ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cables: dict[str, str] = {}
        for place in _PRIVATE:
            Path(place).mkdir(parents=True, exist_ok=True)
        # /run/netns belongs to the machine; names of ours are to be seen in here alone.
        for place in {Path("/run").resolve(), Path("/var/run").resolve()}:
            _run("mount", "-t", "tmpfs", "tmpfs", str(place))
        _ip(
            "link set lo up",
            "link add lan type bridge",
            f"addr add {LAB_IP}/24 dev lan",
            "link set lan up",
            # Who asks for the world (a name server) hears at once that there is none.
            "route add unreachable default",
        )
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def start(self, name: str, ip: str, command: Sequence[str], environ: Mapping[str, str]) -> Host:
        """A host that runs `command` with exactly that environment.

        `name` is new: that of the folder with the host's output and temporary files. An address
        may come back with another host, once the one before is dead.
        """
        netns = f"host{ip.rpartition('.')[2]}"
        if netns not in self._cables:
            self._cables[netns] = self._wire(netns, ip)
        files = self._folder / name
        files.mkdir()
        with (files / "output.log").open("wb") as output:
            process = subprocess.Popen(
                [*_NAMESPACES.format(netns=netns).split(), _START, str(files), *command],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return Host(self._cables[netns], process)

    def _wire(self, netns: str, ip: str) -> str:
        outer = f"veth{len(self._cables)}"
        _ip(
            f"netns add {netns}",
            f"link add {outer} type veth peer name eth0 netns {netns}",
            f"link set {outer} master lan up",
        )
        _ip(
            "link set lo up",
            f"addr add {ip}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {LAB_IP}",  # else Ray takes 127.0.0.1 for its address
            netns=netns,
        )
        return outer


def _ip(*commands: str, netns: str | None = None) -> None:
    for command in commands:
        _run("ip", *(["-n", netns] if netns else []), *command.split())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
