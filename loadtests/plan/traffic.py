"""What the requests of one stage and block ask, in the order in which they arrive."""

import heapq
from dataclasses import dataclass, replace

from loadtests.campaign import Campaign, SyntheticPrompts
from loadtests.campaign.workload import TrafficClass
from loadtests.plan.lengths import Mixture, draw_lengths
from loadtests.plan.request import Part, Turn
from loadtests.plan.seeds import seed_of, stream_of


@dataclass(frozen=True, slots=True)
class Ask:
    """One request without its time."""

    turns: tuple[Turn, ...]
    max_tokens: int
    kind: str
    session: str | None


@dataclass(frozen=True, slots=True)
class _Conversation:
    number: int
    of: TrafficClass | None
    """Its class, of a mixture: a conversation keeps to one."""
    turns_left: int
    prefix: tuple[Part, ...]
    """Before its next message; only the first has one."""
    turns: tuple[Turn, ...] = ()
    """Said so far."""


class Traffic:
    """Draws requests from a campaign's workload.

    `name` keys the random stream and the session ids. A workload without sessions is one of
    conversations that have a single turn.
    """

    def __init__(self, campaign: Campaign, name: str, book_size: int) -> None:
        self._workload = campaign.workload
        self._name = name
        self._book_size = book_size
        self._rng = stream_of(campaign.seed, name, "traffic")
        prompts = campaign.workload.prompts
        self._mixture = Mixture(prompts.mix) if isinstance(prompts, SyntheticPrompts) else None
        self._prefixes = _prefixes(campaign)
        self._started = 0
        self._thinking: list[tuple[float, int, _Conversation]] = []
        """Heap of the conversations with turns left, by the time at which the next is due."""

    def ask(self, at_s: float) -> Ask:
        """The request that arrives at `at_s`; calls come in the order of time."""
        if self._thinking and self._thinking[0][0] <= at_s:
            said = heapq.heappop(self._thinking)[2]
        else:
            said = self._start()
        part, max_tokens = self._draw(said.of)
        turns = (*said.turns, Turn("user", (*said.prefix, part)))
        if said.turns_left > 1:
            self._think(at_s, said, turns, max_tokens)
        return Ask(
            turns=turns,
            max_tokens=max_tokens,
            kind=said.of.name if said.of else "",
            session=f"{self._name}-{said.number}" if self._workload.sessions else None,
        )

    def _start(self) -> _Conversation:
        sessions, rng = self._workload.sessions, self._rng
        self._started += 1
        return _Conversation(
            number=self._started,
            of=self._mixture.draw(rng) if self._mixture else None,
            turns_left=rng.randint(*sessions.turns) if sessions else 1,
            prefix=self._draw_prefix(),
        )

    def _think(
        self, at_s: float, said: _Conversation, turns: tuple[Turn, ...], answer_tokens: int
    ) -> None:
        sessions = self._workload.sessions
        assert sessions is not None
        answer = Turn("assistant", (Part(self._rng.getrandbits(63), answer_tokens),))
        due_s = at_s + self._rng.uniform(*sessions.think_s)
        later = replace(said, turns_left=said.turns_left - 1, prefix=(), turns=(*turns, answer))
        heapq.heappush(self._thinking, (due_s, said.number, later))

    def _draw_prefix(self) -> tuple[Part, ...]:
        shared = self._workload.shared_prefix
        if shared is None or self._rng.random() >= shared.share:
            return ()
        return (self._rng.choice(self._prefixes),)

    def _draw(self, of: TrafficClass | None) -> tuple[Part, int]:
        """One message and the length of its answer."""
        if of is not None:
            n_input, n_output = draw_lengths(of, self._rng)
            return Part(self._rng.getrandbits(63), n_input), n_output
        limits = self._workload.max_tokens
        assert limits is not None, "the schema asks for max_tokens where there is no mixture"
        return Part(self._rng.randrange(self._book_size)), self._rng.randint(*limits)


def _prefixes(campaign: Campaign) -> tuple[Part, ...]:
    """The common beginnings: the same in all stages and blocks, as system prompts are."""
    shared = campaign.workload.shared_prefix
    if shared is None:
        return ()
    return tuple(
        Part(seed_of(campaign.seed, "prefix", group), shared.tokens)
        for group in range(shared.groups)
    )
