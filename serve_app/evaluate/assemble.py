"""From the folder's raw answers to the report: as good after a crash as at the end of a run."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec

from serve_app.domain.quality import (
    Provenance,
    QualityReport,
    Scoring,
    SetRecord,
    TextQuality,
    VariantQuality,
)
from serve_app.domain.verdict import Verdict
from serve_app.evaluate.collect import Files, text_requests
from serve_app.evaluate.judge import Answered, Judge, Question
from serve_app.evaluate.likelihood import Logprobs
from serve_app.evaluate.score import Answers, read_choice, read_greedy
from serve_app.evaluate.settings import NOISE_FLOOR, Pass
from serve_app.evaluate.texts import score_texts

PACKAGES = ("quantile-serve", "openai", "numpy", "rouge-score", "sacrebleu")


def texts_of(files: Files, at: Pass) -> dict[int, str]:
    """What a pass generated, by request."""
    return {i: str(record["text"]) for i, record in files.texts(at).records().items()}


def greedy_of(files: Files, at: Pass, name: str) -> dict[int, str]:
    """A pass's answers to a set."""
    tasks = next(each for each in files.settings.sets if each.name == name)
    return {i: str(record["text"]) for i, record in files.greedy(at, tasks).records().items()}


def read_pass(files: Files, at: Pass, base: Pass) -> Answered:
    """Everything that a pass answered so far."""
    settings, prepared = files.settings, files.prepared
    sets: dict[tuple[str, Scoring], Answers] = {}
    for tasks in settings.sets:
        greedy = files.greedy(at, tasks)
        found = read_greedy(tasks, greedy.records(), len(greedy.failures()))
        sets[tasks.name, Scoring.GREEDY] = found
        if tasks.name in prepared.choices:
            choice = files.choice(at, tasks)
            found = read_choice(tasks, choice.records(), len(choice.failures()))
            if found.right or found.n_failed:
                sets[tasks.name, Scoring.CHOICE] = found
    gaps = files.gap(at).records()
    gap = prepared.gap or (str(gaps[0]["gap"]) if gaps else None)
    logprobs = Logprobs({}, {}, gap)
    if prepared.gap is None:
        windows, answers = files.windows(at), files.answers(at)
        n_failed = len(windows.failures()) + len(answers.failures())
        logprobs = Logprobs.of(windows.records(), answers.records(), gap, n_failed)
    return Answered(at.name, at.model, sets, logprobs, _texts(files, at, base))


def _texts(files: Files, at: Pass, base: Pass) -> tuple[TextQuality, ...]:
    settings, outputs = files.settings, texts_of(files, at)
    requests = text_requests(settings.sizes.texts)
    references = {i: each.answer for i, each in enumerate(requests)}
    against = [(references, "references")]
    if at.name != base.name:
        against.append((texts_of(files, base), "baseline"))
    scored = [
        score_texts(outputs, to, name, seed=settings.seed, n_resamples=settings.n_resamples)
        for to, name in against
    ]
    return tuple(each for each in scored if each is not None)


def assemble(
    files: Files,
    model: str,
    passes: Sequence[Pass],
    *,
    is_partial: bool,
    created_at: str,
    engines: Mapping[str, str],
) -> QualityReport:
    """The report. A partial one passes no variant."""
    settings = files.settings
    base, *_ = passes
    answered = [read_pass(files, each, base) for each in passes]
    by_name = {each.name: each for each in answered}
    floor = by_name.pop(NOISE_FLOOR, None)
    first, *others = by_name.values()
    question = Question(
        settings.sets,
        files.prepared.window_bytes,
        settings.bar,
        settings.seed,
        settings.n_resamples,
    )
    judge = Judge(question, first, floor)
    variants = judge.judge(others)
    return QualityReport(
        model=model,
        baseline=base.name,
        bar=settings.bar,
        is_partial=is_partial,
        variants=tuple(_unfinished(each) for each in variants) if is_partial else variants,
        noise_floor=judge.noise_floor(),
        pairs=judge.pairs(others),
        notes=tuple(_notes(judge, files)),
        provenance=_provenance(files, created_at, engines),
    )


def _unfinished(found: VariantQuality) -> VariantQuality:

    if found.verdict is not Verdict.PASS:
        return found
    reason = "the evaluation did not end: run the same command with the same --out"
    return msgspec.structs.replace(found, verdict=Verdict.INCONCLUSIVE, reason=reason)


def _notes(judge: Judge, files: Files) -> list[str]:
    notes = []
    for (name, scoring), power in judge.powers.items():
        answers = judge.base.sets[name, scoring]
        share = sum(answers.right.values()) / len(answers.right)
        if power == "floor":
            notes.append(
                f"{name} ({scoring}): at its floor: the baseline gets {share:.1%} right, so the "
                "set cannot tell variants apart"
            )
        elif power == "ceiling":
            notes.append(
                f"{name} ({scoring}): at its ceiling: the baseline gets {share:.1%} right, so "
                "only great damage shows"
            )
    counted = {tasks.name for tasks in judge.counted}
    small = [t.name for t in judge.question.sets if t.name not in counted]
    if small:
        notes.append(f"not counted in the score: {', '.join(small)} (too few items, or a floor)")
    if files.prepared.gap is not None:
        notes.append(f"no log-probabilities: {files.prepared.gap}")
    return notes


def _provenance(files: Files, created_at: str, engines: Mapping[str, str]) -> Provenance:
    settings = files.settings
    tasks, logprobs = settings.floor_concurrency
    return Provenance(
        base_url=settings.base_url,
        created_at=created_at,
        versions={name: found for name in PACKAGES if (found := _version(name))},
        engines=dict(engines),
        sets=tuple(
            SetRecord(name=t.name, digest=t.digest, n=len(t.items), origin=t.origin)
            for t in settings.sets
        ),
        windows_digest=files.prepared.digest,
        window_tokens=settings.window_tokens,
        top_k=settings.top_k,
        seed=settings.seed,
        n_resamples=settings.n_resamples,
        concurrency={
            "tasks": settings.task_concurrency,
            "logprobs": settings.logprob_concurrency,
            "noise floor, tasks": tasks,
            "noise floor, logprobs": logprobs,
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
