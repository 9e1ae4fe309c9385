"""Throughput of `quantile store pull` against boto3's own `download_file`, in alternate rounds.

    python -m serve_app.store.bench s3://bucket/prefix@digest --rounds 5

Both get the same requests at once and parts of the same size, and write to the same disk. Ours is
timed to the end: every byte hashed and on disk. boto3's neither hashes nor syncs; the third column
is boto3 with both done afterwards, which is what it would take to have the same.
"""

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serve_app.domain.units import MIB, format_bytes
from serve_app.store.cache import Cache
from serve_app.store.pull import PullSettings, into_cache
from serve_app.store.s3 import S3Source, s3_client, transfer_config
from serve_app.store.transfer import TransferSettings


def bench(
    uri: Annotated[str, typer.Argument(help="s3://bucket/prefix@digest")],
    rounds: Annotated[int, typer.Option(min=1, help="Of both, one after the other.")] = 5,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 8,
    folder: Annotated[
        Path | None, typer.Option(help="On the disk to write to; default: the temporary folder.")
    ] = None,
) -> None:
    """Print MiB/s of each round, and the median ratio."""
    source = S3Source(uri)
    total_bytes = sum(source.sizes.values())
    console = Console(markup=False, highlight=False)
    console.print(f"{format_bytes(total_bytes)}, {len(source.sizes)} files, {concurrency} at once")
    console.print("round    ours  boto3  boto3+sha256+fsync  (MiB/s)")

    def ours(target: Path) -> None:
        settings = PullSettings(TransferSettings(concurrency=concurrency))
        into_cache(uri, Cache(target), settings).release()

    def boto3s(target: Path) -> None:
        config = transfer_config(source.part_bytes, concurrency)
        client = s3_client(uri)  # ours makes one, too
        target.mkdir()
        for name in source.sizes:
            key = source.place.folder + name
            client.download_file(source.place.bucket, key, str(target / name), Config=config)

    _timed(ours, folder, _nothing)  # what is imported once, and the server's cache
    ratios, alike = [], []
    for number in range(rounds):
        mine_s, _ = _timed(ours, folder, _nothing)
        plain_s, after_s = _timed(boto3s, folder, _hash_and_sync)
        speeds = (total_bytes / MIB / each for each in (mine_s, plain_s, plain_s + after_s))
        console.print("{:5}  {:6.0f} {:6.0f}  {:6.0f}".format(number + 1, *speeds))
        ratios.append(plain_s / mine_s)
        alike.append((plain_s + after_s) / mine_s)
    console.print(
        f"median of ours / boto3: {statistics.median(ratios):.2f}; with the same done: "
        f"{statistics.median(alike):.2f}"
    )


def _timed(
    act: Callable[[Path], None], folder: Path | None, then: Callable[[Path], None]
) -> tuple[float, float]:
    """Seconds of `act`, and of what follows it, into a new folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="quantile-bench-") as parent:
        os.sync()  # what the round before left to be written is not ours to wait for
        target = Path(parent) / "target"
        began_s = time.perf_counter()
        act(target)
        ended_s = time.perf_counter()
        then(target)
        after_s = time.perf_counter() - ended_s
        shutil.rmtree(target)
    return ended_s - began_s, after_s


def _nothing(target: Path) -> None: ...


def _hash_and_sync(target: Path) -> None:
    for path in target.iterdir():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
            os.fsync(file.fileno())


if __name__ == "__main__":
    typer.run(bench)
