"""Prometheus pages of the target, read while the load runs: KV use, queues, batch sizes.

In a thread of the parent process: the load processes have their own, and gevent is not here.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Self

from loadtests.campaign import Campaign, Metrics
from loadtests.observe.pages import page_urls, read_page, samples_of
from loadtests.records.manifest import MetricSample, RunFiles
from loadtests.records.record import JsonlWriter

READ_WITHIN_S = 2.0
MOST_TOLD = 3
"""Failures that are told one by one."""
LEAVE_WITHIN_S = 0.2
"""How long the end of a run waits for a read that is under way; its samples are left out then."""


class Scraper:
    """`with Scraper(...)`: samples of the campaign's series go to `samples.jsonl` meanwhile.

    Pages that cannot be read are skipped, and told by `trouble` at the end. Nothing is raised: the
    load does not depend on it. `epoch_ns` is the start of the run on this machine's monotonic
    clock.
    """

    def __init__(self, campaign: Campaign, files: RunFiles, epoch_ns: int) -> None:
        self.failures: Counter[str] = Counter()
        """Reads that failed, by page and reason."""
        self.n_samples = 0
        self._metrics = campaign.metrics
        self._path = files.samples
        self._epoch_ns = epoch_ns
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._writer: JsonlWriter | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._metrics is not None:
            self._writer = JsonlWriter(self._path)
            self._thread = threading.Thread(
                target=self._run, args=(self._metrics,), name="scraper", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(LEAVE_WITHIN_S)
        with self._lock:
            if self._writer is not None:
                self._writer.close()
            self._writer = None

    def trouble(self) -> str | None:
        """What went wrong, in one line; None where nothing did, or no metrics were asked for."""
        if self._metrics is None:
            return None
        with self._lock:
            told = [f"{n} x {text}" for text, n in self.failures.most_common(MOST_TOLD)]
            n_more = len(self.failures) - len(told)
        if n_more:
            told.append(f"and {n_more} more")
        if not self.n_samples:
            told.insert(0, "none of the campaign's series was found")
        return " ".join(f"metrics: {'; '.join(told)}".split()) if told else None

    def _run(self, metrics: Metrics) -> None:
        next_s = time.monotonic()
        while not self._stop.is_set():
            for samples in self._read_all(metrics):
                self._keep(samples)
            next_s = max(next_s + metrics.interval_s, time.monotonic())
            self._stop.wait(next_s - time.monotonic())

    def _read_all(self, metrics: Metrics) -> Iterator[list[MetricSample]]:
        """The samples of each page that can be read, one page after the other."""
        within_s = min(READ_WITHIN_S, metrics.interval_s)
        try:
            urls = page_urls(metrics)
        except (OSError, ValueError) as error:
            self._failed(f"{metrics.file_sd}: {error}")
            urls = metrics.urls
        for url in urls:
            if self._stop.is_set():
                return
            try:
                text = read_page(url, within_s)
                t_ns = time.monotonic_ns() - self._epoch_ns
                yield list(samples_of(text, metrics.series, t_ns))
            except (OSError, ValueError) as error:
                self._failed(f"{url}: {error}")

    def _keep(self, samples: list[MetricSample]) -> None:
        with self._lock:
            if self._writer is None:  # the run is over
                return
            for sample in samples:
                self._writer.write(sample)
            self._writer.flush()
            self.n_samples += len(samples)

    def _failed(self, text: str) -> None:
        with self._lock:
            self.failures[text] += 1
