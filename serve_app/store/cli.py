"""`quantile store`: checkpoints in S3, on the hub and in this node's cache."""

import hashlib
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_app.domain.errors import CheckpointError
from serve_app.domain.units import GIB, format_bytes
from serve_app.store.bucket import Bucket
from serve_app.store.cache import Cache
from serve_app.store.inspect import inspect_checkpoint
from serve_app.store.manifest import read_manifest, verify
from serve_app.store.place import S3Place, is_digest, s3_place
from serve_app.store.progress import Progress, terminal_progress
from serve_app.store.pull import PullSettings, Remote, into_cache, into_folder
from serve_app.store.push import Pushed, push
from serve_app.store.s3 import S3Source
from serve_app.store.source import S3
from serve_app.store.sweep import Limits, Verdict, sweep
from serve_app.store.transfer import MAX_CONCURRENCY, TransferSettings

app = typer.Typer(
    name="store",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Checkpoints in S3 (any endpoint), on the Hugging Face hub, and in this node's cache.",
)
_WIDEST = 2000
_DAY_S = 86_400.0
_Concurrency = Annotated[
    int, typer.Option(min=1, max=MAX_CONCURRENCY, help="Requests at the same time.")
]


@app.command("push")
def push_command(
    folder: Annotated[Path, typer.Argument(help="A folder with a checkpoint.")],
    place: Annotated[str, typer.Argument(help="s3://bucket/prefix")],
) -> None:
    """Put a checkpoint into S3, whole or not at all, and print the name to serve it by.

    Needs s3:PutObject, s3:GetObject, s3:ListBucket. What an earlier push sent is not sent again.

    Example: quantile store push ./gptq s3://models/llama-3.1-8b/gptq
    """
    with terminal_progress() as progress:
        done = push(folder, _bucket_place(place), progress, time.time())
    _say(_pushed(done))


@app.command("pull")
def pull_command(
    source: Annotated[
        str, typer.Argument(help="s3://bucket/prefix@digest, or hf://owner/name[@revision]")
    ],
    to: Annotated[
        str | None,
        typer.Argument(help="A folder, or s3://bucket/prefix; default: this node's cache."),
    ] = None,
    concurrency: _Concurrency = TransferSettings.concurrency,
) -> None:
    """Download a checkpoint, verified, resumed where it was broken off; or copy it into S3.

    Reading needs s3:GetObject alone; HF_TOKEN opens private repositories. A copy into S3 passes
    through this node's cache, whose disk needs room for it.

    Examples:

        quantile store pull s3://models/llama-3.1-8b/gptq@3f0c...

        quantile store pull hf://TheBloke/Llama-2-7B-Chat-GPTQ s3://models/llama-2-7b-chat/gptq
    """
    with terminal_progress() as progress:
        settings = PullSettings(TransferSettings(concurrency=concurrency), progress)
        told = _pull(source, to, settings)
    _say(told)


@app.command("verify")
def verify_command(
    place: Annotated[
        str, typer.Argument(help="A folder, s3://bucket/prefix@digest, or a digest of the cache.")
    ],
) -> None:
    """Read every byte of a checkpoint and hold it against its manifest. Nothing is written.

    Example: quantile store verify s3://models/llama-3.1-8b/gptq@3f0c...
    """
    with terminal_progress() as progress:
        if place.startswith(S3):
            digest = _verify_remote(place, progress)
        else:
            folder = Cache().root / place if is_digest(place) else Path(place).expanduser()
            digest = _verify_folder(folder, progress)
    _say(f"{place} is whole\nsha256 {digest}")


@app.command("list")
def list_command(
    place: Annotated[
        str | None, typer.Argument(help="s3://bucket[/prefix]; default: this node's cache.")
    ] = None,
) -> None:
    """Show the variants below a prefix, or the checkpoints in this node's cache.

    Example: quantile store list s3://models
    """
    table = Table(box=None, pad_edge=False)
    for name in ("scheme", "bytes", "age"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    if place is None:
        _list_cache(table, Cache())
    else:
        _list_bucket(table, _bucket_place(place))
    # Names are for copying: never cut off, whatever the terminal's width.
    Console(markup=False, highlight=False, soft_wrap=True, width=_WIDEST).print(table)


@app.command("gc")
def gc_command(
    max_age_days: Annotated[
        float | None, typer.Option(min=0, help="Drop what was not used for so long.")
    ] = None,
    max_gib: Annotated[
        float | None, typer.Option(min=0, help="Drop what was used longest ago above this size.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
) -> None:
    """Remove checkpoints and broken-off downloads from this node's cache; never what is in use.

    Example: quantile store gc --max-age-days 14 --max-gib 200
    """
    if max_age_days is None and max_gib is None:
        raise CheckpointError("nothing says what may go: give --max-age-days, --max-gib, or both")
    limits = Limits(
        max_age_s=None if max_age_days is None else max_age_days * _DAY_S,
        max_bytes=None if max_gib is None else int(max_gib * GIB),
    )
    verdicts = sweep(Cache(), limits, time.time(), dry_run)
    for verdict in verdicts:
        _say(_told(verdict, dry_run))
    freed = sum(each.entry.n_bytes for each in verdicts if each.reason)
    left = sum(each.entry.n_bytes for each in verdicts if not each.reason)
    _say(f"{'would free' if dry_run else 'freed'} {format_bytes(freed)}, {format_bytes(left)} stay")


def _pull(source: str, to: str | None, settings: PullSettings) -> str:
    """Do it; tells where it is and what it is."""
    if to is None:
        lease = into_cache(source, Cache(), settings)
        lease.release()
        return f"{lease.folder}\nsha256 {lease.digest}"
    if to.startswith(S3):
        return _pushed(_copy(source, _bucket_place(to), settings))
    manifest = into_folder(source, Path(to).expanduser().absolute(), settings)
    return f"{to}\nsha256 {manifest.digest()}"


def _copy(source: str, place: S3Place, settings: PullSettings) -> Pushed:
    remote = Remote(source)
    cache = Cache()
    settings.progress.said(
        f"through {cache.root}: needs {format_bytes(remote.total_bytes)} there, of "
        f"{format_bytes(_free_bytes(cache.root))} free"
    )
    lease = into_cache(source, cache, settings)
    try:
        return push(lease.folder, place, settings.progress, time.time(), remote.origin)
    finally:
        lease.release()


def _verify_remote(uri: str, progress: Progress) -> str:
    source = S3Source(uri)
    if source.place.digest is None:
        raise CheckpointError(f"{uri} names no variant: need {uri}@<digest>")
    files = source.stored.files
    advance = progress.moving(source.place.short, sum(entry.bytes for entry in files.values()))
    wrong = []
    for name, entry in files.items():
        found = hashlib.sha256()
        for piece in source.stream(name, 0, entry.bytes):
            found.update(piece)
            advance(len(piece))
        if found.hexdigest() != entry.sha256:
            wrong.append(name)
    if wrong:
        raise CheckpointError(f"{uri} is damaged: {', '.join(wrong)}; push it again")
    return source.place.digest


def _verify_folder(folder: Path, progress: Progress) -> str:
    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(
            f"{folder} has no manifest.json to hold it against: `quantile store push` makes one"
        )
    verify(folder, manifest, progress.moving(folder.name, manifest.total_bytes))
    return manifest.digest()


def _list_bucket(table: Table, place: S3Place) -> None:
    table.add_column("card")
    table.add_column("name")
    for found, record in Bucket(place).variants():
        age_s = time.time() - record.pushed_unix_s
        card = record.card or "none"
        table.add_row(
            record.scheme.describe(), f"{record.total_bytes:,}", _age(age_s), card, found.uri
        )


def _list_cache(table: Table, cache: Cache) -> None:
    table.add_column("in use")
    table.add_column("name")
    for entry in cache.entries():
        scheme = _scheme(cache.root / entry.name) if entry.is_whole else "unfinished"
        table.add_row(
            *(scheme, f"{entry.n_bytes:,}", _age(time.time() - entry.used_unix_s)),
            *("yes" if cache.is_used(entry) else "no", str(entry.name)),
        )


def _scheme(folder: Path) -> str:
    try:
        return inspect_checkpoint(folder).scheme.describe()
    except CheckpointError:  # no reason not to show the rest
        return "not known"


def _bucket_place(uri: str) -> S3Place:
    if not uri.startswith(S3):
        raise CheckpointError(f"{uri!r} is not in S3: need s3://bucket/prefix")
    return s3_place(uri)


def _pushed(done: Pushed) -> str:
    there = f"; {len(done.kept)} were there" if done.kept else ""
    size = format_bytes(done.record.total_bytes)
    return f"{len(done.sent)} files sent{there}, {size} in all\n{done.place.uri}"


def _told(verdict: Verdict, dry_run: bool) -> str:
    entry = verdict.entry
    what = entry.name if entry.is_whole else f"download {entry.name}"
    size = f"{format_bytes(entry.n_bytes)}, used {_age(time.time() - entry.used_unix_s)} ago"
    if verdict.reason is None:
        return f"kept {what} ({size}){', in use' if verdict.is_used else ''}"
    return f"{'would drop' if dry_run else 'dropped'} {what} ({size}): {verdict.reason}"


def _age(age_s: float) -> str:
    for unit_s, unit in ((_DAY_S, "d"), (3600.0, "h"), (60.0, "min")):
        if age_s >= unit_s:
            return f"{age_s / unit_s:.0f} {unit}"
    return f"{max(0.0, age_s):.0f} s"


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _say(text: str) -> None:
    Console(markup=False, highlight=False, soft_wrap=True).print(text)
