"""Checkpoints in a repository of the Hugging Face Hub, or of a mirror of it (`HF_ENDPOINT`).

`HF_TOKEN`, or the token that `hf auth login` saved, opens private and gated repositories. All reads
are of the commit that the first one found, whatever happens to the branch meanwhile.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from serve_app.domain.errors import CheckpointError
from serve_app.store.source import Source

TIMEOUT_S = 30
RETRIES = 3
"""Of one read, with the hub library's back-off (1, 2, 4 s): rate limits, 5xx, connections."""


class HubSource(Source):
    """The files of a model repository, or of one folder in it.

    `endpoint` replaces the hub library's own (HF_ENDPOINT, or huggingface.co).
    """

    def __init__(self, uri: str, endpoint: str | None = None) -> None:
        from huggingface_hub import HfApi, parse_hf_uri
        from huggingface_hub.errors import HfUriError

        super().__init__(uri)
        try:
            place = parse_hf_uri(uri.rstrip("/"))
        except HfUriError as error:
            raise CheckpointError(f"{error}; need hf://owner/name[@revision]") from None
        if place.type != "model":
            raise CheckpointError(f"{uri!r} is a {place.type}: need a model, hf://owner/name")
        self._repository, self._revision = place.id, place.revision
        self._folder = place.path_in_repo + "/" if place.path_in_repo else ""
        self._api = HfApi(endpoint=endpoint)

    def _list(self) -> Mapping[str, int]:
        _, files = self._listing
        inside = {
            name.removeprefix(self._folder): size
            for name, size in files.items()
            if name.startswith(self._folder)
        }
        return {name: size for name, size in inside.items() if "/" not in name}

    @cached_property
    def _listing(self) -> tuple[str, dict[str, int]]:
        """The commit, and all its files."""
        from httpx2 import HTTPError

        try:
            info = self._api.model_info(
                self._repository, revision=self._revision, files_metadata=True, timeout=TIMEOUT_S
            )
        except (HTTPError, OSError) as error:  # OSError: offline mode
            raise self._refused(self.uri, error) from None
        files = {file.rfilename: file.size for file in info.siblings or []}
        unknown = [name for name, size in files.items() if size is None]
        if unknown or not info.sha:
            raise CheckpointError(
                f"{self._api.endpoint} does not tell the commit and the sizes of the files of "
                f"{self.uri}: give HF_ENDPOINT a mirror that answers ?blobs=true"
            )
        return info.sha, {name: size for name, size in files.items() if size is not None}

    def _fetch(self, name: str, start: int, length: int) -> bytes:
        from httpx2 import HTTPError
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(
            self._repository,
            self._folder + name,
            revision=self._listing[0],
            endpoint=self._api.endpoint,
        )
        headers = {
            **build_hf_headers(token=self._api.token),
            "Range": f"bytes={start}-{start + length - 1}",
            "Accept-Encoding": "identity",
        }
        try:
            with http_stream_backoff(
                "GET", url, headers=headers, timeout=TIMEOUT_S, max_retries=RETRIES
            ) as answer:
                try:
                    hf_raise_for_status(answer)
                    return _part(answer, start, length)
                except HTTPError as error:  # not left to the back-off, which cannot resume
                    raise self._refused(self.locate(name), error) from None
        except (HTTPError, OSError) as error:
            raise self._refused(self.locate(name), error) from None

    def _refused(self, place: str, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot read {place}: {self._fix(error)}")

    def _fix(self, error: Exception) -> str:
        from huggingface_hub import errors

        web = f"{self._api.endpoint}/{self._repository}"
        if isinstance(error, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set: unset it"
        if isinstance(error, errors.GatedRepoError):
            return f"the repository is gated: ask for access at {web}, then set HF_TOKEN"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"it has no revision {self._revision!r}: see {web}/commits/main"
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"there is no {web}, or it is private: check the name, or set HF_TOKEN"
        if isinstance(error, errors.EntryNotFoundError):
            return f"there is no such file: see {web}/tree/{self._revision or 'main'}"
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            if status in {401, 403}:
                return f"access denied ({status}): check HF_TOKEN and its rights to {web}"
            return f"{self._api.endpoint} answered {status}: try again later"
        reason = str(error) or type(error).__name__
        return f"{self._api.endpoint} does not answer ({reason}): check the network and HF_ENDPOINT"


def _part(answer: Any, start: int, length: int) -> bytes:
    """The bytes asked for, also from a server that ignores ranges and sends the file's all."""
    skipped = 0 if answer.status_code == 206 else start
    data = bytearray()
    for chunk in answer.iter_bytes():
        data += chunk
        if len(data) >= skipped + length:
            break
    return bytes(data[skipped : skipped + length])
