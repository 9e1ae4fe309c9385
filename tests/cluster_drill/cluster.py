"""A RayCluster whose pods are hosts of the lab, kept as KubeRay keeps it."""

import itertools
import os
import secrets
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

from tests.cluster_drill import kuberay
from tests.cluster_drill.hosts import LAB_IP, Host, Lan
from tests.cluster_drill.kuberay import GCS_PORT, HEAD_GROUP, NAME, NAMESPACE, Object, Pod

HEAD_IP, REDIS_IP = "10.77.0.10", "10.77.0.2"
"""The head's address stands for that of its Service: the next head has it, too."""
API_PORT = 6443
_FIRST_WORKER, _RECONCILE_S = 20, 0.5
_BIN = Path(sys.executable).parent
HURRY = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_SERVE_NODE_COMPACTION_DELAY_S": "3",
}
"""What takes many seconds in production takes one here."""
_ON_THIS_MACHINE = {
    "PATH": f"{_BIN}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # hosts share the machine's memory
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(_BIN / "quantile-haproxy"),
}
_START = ("--object-store-memory=100000000", "--include-log-monitor=false")
_AUTOSCALER = """
export KUBERNETES_SERVICE_HOST={api} KUBERNETES_SERVICE_PORT_HTTPS={port} KUBERAY_CRD_VER=v1
( until (exec 3<>/dev/tcp/127.0.0.1/{gcs}) 2>/dev/null; do sleep 0.3; done
  exec ray kuberay-autoscaler --cluster-name {name} --cluster-namespace {namespace} ) &
exec "$@"
"""


class Cluster:
    """`with cluster.kept():` KubeRay's part is done: pods are made, replaced and deleted.

    `object` is the RayCluster, which others may change under `lock`.
    """

    def __init__(self, lan: Lan, ray_cluster: Object) -> None:
        self.object = ray_cluster
        self.lock = threading.RLock()
        self.secrets = {
            name: secrets.token_hex(16)
            for name in ("RAY_AUTH_TOKEN", "REDIS_PASSWORD", "QUANTILE_INTERNAL_TOKEN")
        }
        self._lan = lan
        self._hosts: dict[str, tuple[Pod, Host]] = {}
        self._number = itertools.count(1)
        self._leaves_head = False
        self._over = threading.Event()

    def pods(self) -> list[Pod]:
        """Those whose host is alive."""
        with self.lock:
            return [pod for pod, host in self._hosts.values() if host.is_alive]

    def nodes(self) -> Counter[str]:
        """How many workers there are, by group."""
        return Counter(pod.group for pod in self.pods() if pod.group != HEAD_GROUP)

    def kill(self, pod: Pod) -> None:
        """The whole host, by SIGKILL."""
        with self.lock:
            self._hosts.pop(pod.name)[1].kill()

    def cut_off(self, pod: Pod) -> None:
        """The whole host, by a loss of power. Kubernetes would not know for minutes: nor does
        what keeps the pods, from now on."""
        self._over.set()
        with self.lock:
            self._hosts[pod.name][1].lose_power()

    @contextmanager
    def without_head(self) -> Iterator[None]:
        """The head is killed, and another one is made after the block."""
        [head] = [pod for pod in self.pods() if pod.group == HEAD_GROUP]
        with self.lock:
            self._leaves_head = True
            self.kill(head)
        try:
            yield
        finally:
            self._leaves_head = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Do what KubeRay does, until the block is left."""
        thread = threading.Thread(target=self._keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def reconcile(self) -> None:
        """Make the pods what the RayCluster asks for. Workers wait for the head's GCS."""
        with self.lock:
            for name, (_, host) in list(self._hosts.items()):
                if not host.is_alive:
                    del self._hosts[name]
            make, delete = kuberay.changes(self.object, self.pods())
            for name in delete:
                self._hosts.pop(name)[1].kill()
            for group in make:
                if group == HEAD_GROUP:
                    if not self._leaves_head:
                        self._start(group, HEAD_IP)
                elif _answers(HEAD_IP, GCS_PORT):
                    self._start(group, None)

    def _keep(self) -> None:
        while not self._over.wait(_RECONCILE_S):
            self.reconcile()

    def _start(self, group: str, ip: str | None) -> None:
        number = next(self._number)
        ip = ip or f"10.77.0.{_FIRST_WORKER + number}"
        name = f"{NAME}-{group}-{number}"
        theirs = kuberay.environment(self.object, group, name, HEAD_IP, self.secrets)
        environ = {**theirs, **HURRY, **_ON_THIS_MACHINE, "HOME": str(Path.home())}
        del environ["QUANTILE_API_KEYS_FILE"]  # no keys: who asks is not what is drilled
        words = [*kuberay.ray_start(self.object, group, HEAD_IP), *_START]
        command = [Template(word).substitute(environ) for word in words]
        if group == HEAD_GROUP and self.object["spec"].get("enableInTreeAutoscaling"):
            script = _AUTOSCALER.format(
                api=LAB_IP, port=API_PORT, gcs=GCS_PORT, name=NAME, namespace=NAMESPACE
            )
            command = ["/bin/bash", "-c", script, "bash", *command]
        self._hosts[name] = (Pod(name, group, ip), self._lan.start(name, ip, command, environ))


def start_redis(lan: Lan, password: str) -> Host:
    """As `cluster/components/redis` runs it."""
    script = (
        'cd "$0" && printf "requirepass %s\\nappendonly yes\\nappendfsync everysec\\n" '
        '"$REDIS_PASSWORD" | exec redis-server -'
    )
    environ = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": password}
    return lan.start("redis", REDIS_IP, ["/bin/sh", "-c", script, "/dev/shm"], environ)


def _answers(ip: str, port: int) -> bool:
    try:
        socket.create_connection((ip, port), timeout=0.5).close()
    except OSError:
        return False
    return True
