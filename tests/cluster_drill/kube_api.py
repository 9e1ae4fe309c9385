"""The part of a Kubernetes API server that Ray's autoscaler asks: one RayCluster and its pods."""

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.cluster_drill.cluster import API_PORT, Cluster
from tests.cluster_drill.hosts import LAB_IP
from tests.cluster_drill.kuberay import NAME, NAMESPACE, Object, patched

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CLUSTER = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/{NAME}"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@contextmanager
def kube_api(cluster: Cluster, token: str) -> Iterator[None]:
    """Serve it over TLS to whoever has the token; both are where pods find them."""
    ACCOUNT.mkdir(parents=True)
    (ACCOUNT / "token").write_text(token)
    certificate, key = ACCOUNT / "ca.crt", ACCOUNT / "key.pem"
    _make_certificate(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer((LAB_IP, API_PORT), partial(_Handler, cluster, token))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, cluster: Cluster, token: str, *connection: object) -> None:
        self._cluster = cluster
        self._token = token
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        pods = {pod.name: pod.as_object() for pod in self._cluster.pods()}
        if self.headers["Authorization"] != f"Bearer {self._token}":
            self._answer(401, {"message": "Unauthorized"})
        elif path == _CLUSTER:
            self._answer(200, self._cluster.object)
        elif path == _PODS:
            self._answer(200, {"metadata": {"resourceVersion": "1"}, "items": list(pods.values())})
        elif (name := path.removeprefix(f"{_PODS}/")) in pods:
            self._answer(200, pods[name])
        else:
            self._answer(404, {"message": f"no {path}"})

    def do_PATCH(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {self._token}":
            self._answer(401, {"message": "Unauthorized"})
        elif self.path != _CLUSTER:
            self._answer(404, {"message": f"no {self.path}"})
        else:
            with self._cluster.lock:
                try:
                    self._cluster.object = patched(self._cluster.object, json.loads(body))
                except ValueError as error:
                    self._answer(422, {"message": str(error)})
                    return
            self._answer(200, self._cluster.object)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: it is asked every second."""

    def _answer(self, status: int, body: Object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def _make_certificate(certificate: Path, key: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=kubernetes", "-addext", f"subjectAltName=IP:{LAB_IP}"]
    command += ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
