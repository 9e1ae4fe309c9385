"""One simulation as a whole: the ladder, a fixed choice, and the best possible, on one trace."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serve_app.config.ladder import LadderConfig
from serve_app.domain.errors import ConfigError
from serve_app.simulate.curves import ServiceCurve, named
from serve_app.simulate.oracle import bound, hindsight
from serve_app.simulate.outcome import Limits, Outcome, outcome
from serve_app.simulate.policies import Fixed, Ladder
from serve_app.simulate.run import Arrival, Clock, Fleet, Played, play


@dataclass(frozen=True)
class Question:
    """What is simulated."""

    config: LadderConfig
    curves: tuple[ServiceCurve, ...]
    quality: Mapping[str, float]
    """Expected quality per variant, on any scale on which the mean means something."""
    trace: tuple[Arrival, ...]
    replicas: Mapping[str, int]
    shares_device: bool = False
    n_routers: int = 1

    def limits(self) -> Limits:
        """The SLO of one request. Raises ConfigError where there is none to violate."""
        rules = self.config.to_rules()
        if rules.ttft_p95_s is None and rules.tpot_p95_s is None:
            raise ConfigError("a simulation counts SLO violations: set ttft_p95_ms or tpot_p95_ms")
        return Limits(rules.ttft_p95_s, rules.tpot_p95_s)

    def fleet(self) -> Fleet:
        """Engines of the rungs. Raises ConfigError for a rung without a curve or quality."""
        rungs = self.config.rungs
        if missing := [name for name in rungs if name not in self.quality]:
            raise ConfigError(
                f"no quality is given for {', '.join(missing)}: --quality NAME=VALUE, or the "
                "quality.json of `quantile eval`"
            )
        if unknown := [name for name in self.replicas if name not in rungs]:
            have = ", ".join(rungs)
            raise ConfigError(f"--replicas names {', '.join(unknown)}; the rungs are {have}")
        return Fleet(named(self.curves, rungs), self.replicas, self.shares_device)


@dataclass(frozen=True)
class Answer:
    """What came of it."""

    fixed: Outcome
    ladder: Outcome
    hindsight: Outcome | None
    """None: no overflow policy violates the SLO as rarely as the ladder did."""
    bound: float
    """Mean quality that nothing exceeds with the ladder's violations."""
    played: Played
    """The ladder's."""
    played_fixed: Played
    view: Mapping[str, Any]
    """What the first router's `/status` would say at the end."""

    @property
    def gain(self) -> float:
        """How many times fewer violations than fixed; infinite without any."""
        ladder = self.ladder.n_violations
        return self.fixed.n_violations / ladder if ladder else float("inf")

    @property
    def lost_to_best(self) -> float | None:
        """Share of quality given up against the best possible; None: there is no `hindsight`."""
        return None if self.hindsight is None else 1 - self.ladder.quality / self.hindsight.quality

    @property
    def lost_to_bound(self) -> float:
        """Share of quality given up against what nothing exceeds."""
        return 1 - self.ladder.quality / self.bound

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        policies = [self.fixed, self.ladder, *([self.hindsight] if self.hindsight else [])]
        return {
            "policies": [asdict(each) | {"served": dict(each.served)} for each in policies],
            "quality_bound": self.bound,
            "shares_bp": [[at_s, dict(shares)] for at_s, shares in self.played.shares],
            "view": self.view,
        }


def answer(question: Question) -> Answer:
    """Simulate. Raises ConfigError for a question that cannot be answered."""
    limits, fleet = question.limits(), question.fleet()
    rungs, quality, trace = question.config.rungs, question.quality, question.trace
    made: list[Ladder] = []

    def make_ladder(clock: Clock) -> Ladder:
        made.append(Ladder(question.config, clock, question.n_routers))
        return made[0]

    played_fixed = play(trace, fleet, lambda _: Fixed(rungs[0]))
    played = play(trace, fleet, make_ladder)
    ladder = outcome("ladder", played, limits, quality)
    view = made[0].loops[0].view()
    assert view is not None
    most = ladder.n_violations
    return Answer(
        fixed=outcome(f"all on {rungs[0]}", played_fixed, limits, quality),
        ladder=ladder,
        hindsight=hindsight(trace, fleet, rungs, limits, quality, most),
        bound=bound(trace, fleet, rungs, limits, quality, most),
        played=played,
        played_fixed=played_fixed,
        view=view,
    )


def capacity_per_s(
    question_curves: Sequence[ServiceCurve],
    config: LadderConfig,
    tokens: float,
    replicas: Mapping[str, int],
) -> dict[str, float]:
    """Requests per second that each rung carries within the TPOT, at its best batch."""
    tpot_s = config.to_rules().tpot_p95_s
    return {
        name: replicas.get(name, 1) * curve.rate_per_s(curve.best_batch(tokens, tpot_s), tokens)
        for name, curve in named(question_curves, config.rungs).items()
    }
