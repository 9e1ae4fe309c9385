"""Checkpoints in a repository of the Hugging Face Hub, or of a mirror of it (`HF_ENDPOINT`).

`HF_TOKEN`, or the token that `hf auth login` saved, opens private and gated repositories. All reads
are of the commit that the first one found, whatever happens to the branch meanwhile.
"""

import re
from collections.abc import Generator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from serve_app.domain.errors import CheckpointError, UnreachableError
from serve_app.domain.units import MIB
from serve_app.store.source import PIECE_BYTES, Source

TIMEOUT_S = 30
RETRIES = 3
"""Of one read, with the hub library's back-off (1, 2, 4 s): rate limits, 5xx, connections."""

T = TypeVar("T")


class _File(NamedTuple):
    n_bytes: int
    checksum: str


class HubSource(Source):
    """The files of a model repository, or of one folder in it.

    `endpoint` replaces the hub library's own (HF_ENDPOINT, or huggingface.co).
    """

    part_bytes = 64 * MIB  # each request counts against the hub's rate limit

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

    @property
    def checksums(self) -> Mapping[str, str]:
        """Of large files the SHA-256, of small ones the name of their blob."""
        return self._inside({name: file.checksum for name, file in self._listing[1].items()})

    @property
    def version(self) -> str:
        """The commit that the revision stands for; of a whole commit's name, without asking."""
        is_commit = re.fullmatch(r"[0-9a-f]{40}", self._revision or "")
        return str(self._revision) if is_commit else self._listing[0]

    def _list(self) -> Mapping[str, int]:
        return self._inside({name: file.n_bytes for name, file in self._listing[1].items()})

    def _inside(self, files: Mapping[str, T]) -> dict[str, T]:
        """Of the files, those right in the folder, by their names in it."""
        inside = {
            name.removeprefix(self._folder): file
            for name, file in files.items()
            if name.startswith(self._folder)
        }
        return {name: file for name, file in inside.items() if "/" not in name}

    @cached_property
    def _listing(self) -> tuple[str, dict[str, _File]]:
        """The commit, and all its files."""
        from httpx2 import HTTPError

        try:
            info = self._api.model_info(
                self._repository, revision=self._revision, files_metadata=True, timeout=TIMEOUT_S
            )
        except (HTTPError, OSError) as error:  # OSError: offline mode
            raise self._refused(self.uri, error) from None
        found = info.siblings or []
        if not info.sha or any(file.size is None for file in found):
            raise CheckpointError(
                f"{self._api.endpoint} does not tell the commit and the sizes of the files of "
                f"{self.uri}: give HF_ENDPOINT a mirror that answers ?blobs=true"
            )
        return info.sha, {file.rfilename: _File(file.size, _checksum(file)) for file in found}

    def _stream(self, name: str, start: int, length: int) -> Generator[bytes, None, None]:
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
                    yield from _part(answer, start, length)
                except HTTPError as error:  # not left to the back-off, which cannot resume
                    raise self._refused(self.locate(name), error) from None
        except (HTTPError, OSError) as error:
            raise self._refused(self.locate(name), error) from None

    def _refused(self, place: str, error: Exception) -> CheckpointError:
        kind = UnreachableError if _may_pass(error) else CheckpointError
        return kind(f"cannot read {place}: {self._fix(error)}")

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


def _checksum(file: Any) -> str:
    if file.lfs is not None and file.lfs.sha256:
        return f"sha256:{file.lfs.sha256}"
    return f"git:{file.blob_id}" if file.blob_id and file.lfs is None else ""


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in {408, 429, 500, 502, 503, 504}
    return not isinstance(error, errors.OfflineModeIsEnabled)


def _part(answer: Any, start: int, length: int) -> Generator[bytes, None, None]:
    """The bytes asked for, also from a server that ignores ranges and sends the file's all."""
    skip, left = 0 if answer.status_code == 206 else start, length
    for chunk in answer.iter_bytes(PIECE_BYTES):
        piece = chunk[skip : skip + left]
        skip, left = max(0, skip - len(chunk)), left - len(piece)
        if piece:
            yield piece
        if not left:
            break
