"""An S3 store on loopback (moto) that counts what it sends, and an account at it."""

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.backends import get_backend
from moto.core import set_initial_no_auth_action_count
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.fakes.background import InBackground


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None: ...


class FakeS3(InBackground):
    """`with FakeS3() as s3`: `s3.url`, what it was asked, and the bytes of all answers."""

    def __init__(self) -> None:
        self.knows_ranges = True
        self.cuts_bodies = False
        self.requests: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self._lock = threading.Lock()
        self._application = DomainDispatcherApplication(create_backend_app)
        super().__init__(
            make_server("127.0.0.1", 0, self._count, threaded=True, request_handler=_Quiet)
        )

    def forget(self) -> None:
        """Start counting anew."""
        self.requests, self.sent_bytes = [], 0

    def _count(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterator[bytes]:
        with self._lock:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if not self.knows_ranges:
            environ.pop("HTTP_RANGE", None)
        pieces: Iterable[bytes] = self._application(environ, start_response)
        for piece in pieces:
            if self.cuts_bodies:
                yield piece[: len(piece) // 2]
                return
            with self._lock:
                self.sent_bytes += len(piece)
            yield piece


BUCKET = "models"


def forget_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have nothing of what this machine's user has set up."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@contextmanager
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeS3]:
    """A store with an empty bucket, and the environment that leads to it."""
    forget_this_machine(monkeypatch, tmp_path)
    with FakeS3() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        log_in(monkeypatch, "testing", "testing")
        client("s3").create_bucket(Bucket=BUCKET)
        yield store
    for service in ("s3", "iam"):
        get_backend(service).reset()


def log_in(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    """Be this user from now on."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def client(service: str) -> Any:
    """With the credentials of now: boto3's default session keeps the first."""
    return boto3.Session().client(service)


def read_only(monkeypatch: pytest.MonkeyPatch, actions: list[str]) -> None:
    """Log in as a user who may do this and nothing else."""
    iam = client("iam")
    iam.create_user(UserName="reader")
    policy = {"Effect": "Allow", "Action": actions, "Resource": "arn:aws:s3:::*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=document)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    log_in(monkeypatch, key["AccessKeyId"], key["SecretAccessKey"])


def with_authorization(act: Callable[[], Any]) -> Any:
    """Let the store check signatures and rights while this runs."""
    return set_initial_no_auth_action_count(0)(act)()
