"""One pass: a model asked everything, its answers written down. No figure is made here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from serve_app.domain.quality import Scoring
from serve_app.evaluate.endpoint import Endpoint, NoPromptLogprobsError
from serve_app.evaluate.prepare import Prepared, Progress, unseen_exchanges
from serve_app.evaluate.raw import RawFile
from serve_app.evaluate.settings import Pass, Settings
from serve_app.evaluate.store import Store, fill
from serve_app.evaluate.tasks.items import Item, TaskSet
from serve_app.reference.corpus import Exchange

MAX_TEXT_TOKENS = 200
WINDOWS, ANSWERS, TEXTS = "windows", "answers", "texts"


@dataclass(frozen=True)
class Files:
    """Where a pass's answers are."""

    store: Store
    settings: Settings
    prepared: Prepared

    def greedy(self, at: Pass, tasks: TaskSet) -> RawFile:
        """Answers to a set: `text`."""
        header = {"model": at.model, "digest": tasks.digest, "max_tokens": tasks.max_tokens}
        return self.store.file(at.name, f"{tasks.name}.{Scoring.GREEDY}", header)

    def choice(self, at: Pass, tasks: TaskSet) -> RawFile:
        """Log-probability of each choice of a set: `logprobs`."""
        header = {"model": at.model, "digest": tasks.digest}
        return self.store.file(at.name, f"{tasks.name}.{Scoring.CHOICE}", header)

    def windows(self, at: Pass) -> RawFile:
        """Of each window: `own`, `top`."""
        header = {"model": at.model, "digest": self.prepared.digest, "k": self.settings.top_k}
        return self.store.file(at.name, WINDOWS, header)

    def answers(self, at: Pass) -> RawFile:
        """Of each right answer's tokens: `own`."""
        header = {"model": at.model, "n": len(self.prepared.answers)}
        return self.store.file(at.name, ANSWERS, header)

    def texts(self, at: Pass) -> RawFile:
        """Generated texts: `text`."""
        header = {"model": at.model, "n": self.settings.sizes.texts}
        return self.store.file(at.name, TEXTS, header)

    def gap(self, at: Pass) -> RawFile:
        """Why the pass has no log-probabilities, if so: `gap`."""
        return self.store.file(at.name, "gap", {"model": at.model})


def text_requests(n: int) -> list[Exchange]:
    """Requests for longer texts, each with a reference."""
    told = [each for each in unseen_exchanges() if len(each.answer) > 80]
    return told[:n]


async def collect(endpoint: Endpoint, at: Pass, files: Files, progress: Progress) -> None:
    """Ask what is missing. Raises EngineError where the endpoint is gone."""
    for tasks in files.settings.sets:
        await _greedy(endpoint, at, tasks, files, progress)
    await _texts(endpoint, at, files, progress)
    if files.prepared.gap is not None:
        return
    try:
        await _likelihood(endpoint, at, files, progress)
        for tasks in files.settings.sets:
            if tasks.name in files.prepared.choices:
                await _choices(endpoint, at, tasks, files, progress)
    except NoPromptLogprobsError as error:
        with files.gap(at) as file:
            file.add({"i": 0, "gap": str(error)})


async def _greedy(
    endpoint: Endpoint, at: Pass, tasks: TaskSet, files: Files, progress: Progress
) -> None:
    async def ask(i: int) -> Mapping[str, object]:
        return {"text": await endpoint.answer(at.model, tasks.items[i].question, tasks.max_tokens)}

    what = f"{at.name}: {tasks.name}"
    n = len(tasks.items)
    shown = _named(progress, what)
    await fill(files.greedy(at, tasks), n, ask, at.task_concurrency, shown)


async def _texts(endpoint: Endpoint, at: Pass, files: Files, progress: Progress) -> None:
    requests = text_requests(files.settings.sizes.texts)

    async def ask(i: int) -> Mapping[str, object]:
        return {"text": await endpoint.answer(at.model, requests[i].request, MAX_TEXT_TOKENS)}

    shown = _named(progress, f"{at.name}: texts")
    await fill(files.texts(at), len(requests), ask, at.task_concurrency, shown)


async def _likelihood(endpoint: Endpoint, at: Pass, files: Files, progress: Progress) -> None:
    windows, answers = files.prepared.windows, files.prepared.answers

    async def window(i: int) -> Mapping[str, object]:
        (found,) = await endpoint.prompt_logprobs(at.model, [windows[i]], files.settings.top_k)
        return {"own": found.own, "top": found.top}

    async def answer(i: int) -> Mapping[str, object]:
        (found,) = await endpoint.prompt_logprobs(at.model, [answers[i].ids], None)
        return {"own": found.own[answers[i].start - 1 :]}

    at_once = at.logprob_concurrency
    shown = _named(progress, f"{at.name}: log-probabilities of windows")
    await fill(files.windows(at), len(windows), window, at_once, shown)
    shown = _named(progress, f"{at.name}: log-probabilities of answers")
    await fill(files.answers(at), len(answers), answer, at_once, shown)


async def _choices(
    endpoint: Endpoint, at: Pass, tasks: TaskSet, files: Files, progress: Progress
) -> None:
    passages = files.prepared.choices[tasks.name]

    async def ask(i: int) -> Mapping[str, object]:
        if not passages[i]:
            return {"logprobs": []}
        ids = [each.ids for each in passages[i]]
        found = await endpoint.prompt_logprobs(at.model, ids, None)
        sums = [sum(f.own[p.start - 1 :]) for f, p in zip(found, passages[i], strict=True)]
        return {"logprobs": sums}

    shown = _named(progress, f"{at.name}: choices of {tasks.name}")
    await fill(files.choice(at, tasks), len(passages), ask, at.logprob_concurrency, shown)


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, of: progress(what, done, of)


def flipped(
    items: Sequence[Item], first: Mapping[int, str], second: Mapping[int, str]
) -> Iterator[int]:
    """Items that one got right and the other wrong."""
    for i, item in enumerate(items):
        if i in first and i in second and item.is_right(first[i]) != item.is_right(second[i]):
            yield i
