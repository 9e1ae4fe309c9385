"""Evidence from the records of a load campaign: the same request, sent to both variants.

Of a cell of each variant in one block the requests of one index are a pair: same prompt, same time
in the cell. Cells of a closed loop have no such index and are left out.
"""

import msgspec

from loadtests.analyse.metrics import tpot_ms, ttft_user_ms
from loadtests.records.manifest import RunFiles
from loadtests.records.record import CellPlan, RequestRecord, read_lines
from serve_app.config.rollout_evidence import CampaignConfig
from serve_app.domain.errors import ConfigError
from serve_app.rollout.observations import Answer, Look, Pair, Pairs

Place = tuple[str, int, int, int]
"""Stage, block, repeat, index."""


class CampaignEvidence:
    """Implements `Evidence`: pairs in the order in which they became whole."""

    trouble = None

    def __init__(
        self, config: CampaignConfig, baseline: str, candidate: str, mark: int = 0
    ) -> None:
        self.look_s = 1.0
        self._files = RunFiles(config.folder)
        self._look_pairs = config.look_pairs
        self._arms = baseline, candidate
        self._mark = mark
        self._is_exhausted = False
        manifest = self._files.read_manifest()
        known = manifest.parsed().target.variants
        missing = [name for name in self._arms if name not in known]
        if missing:
            raise ConfigError(
                f"{config.folder} is a campaign without {', '.join(missing)}; it has "
                f"{', '.join(known)}"
            )

    @property
    def is_exhausted(self) -> bool:
        """As in `Evidence`."""
        return self._is_exhausted

    @property
    def mark(self) -> int:
        """As in `Evidence`: pairs that were taken."""
        return self._mark

    async def begin(self) -> None:
        """As in `Evidence`; what was taken stays taken: no pair counts in two steps."""

    async def take(self) -> Look:
        """As in `Evidence`."""
        has_ended = self._files.read_ending() is not None
        pairs = self._pairs()
        fresh = pairs[self._mark : self._mark + self._look_pairs]
        self._mark += len(fresh)
        self._is_exhausted = has_ended and self._mark >= len(pairs)
        return Look(pairs=Pairs.of(fresh))

    async def close(self) -> None:
        """As in `Evidence`."""

    def _pairs(self) -> list[Pair]:
        try:
            cells = {cell.index: cell for cell in read_lines(self._files.cells, CellPlan)}
            waiting: dict[Place, tuple[str, Answer]] = {}
            found = []
            for record in read_lines(self._files.records, RequestRecord):
                cell = cells.get(record.cell)
                if cell is None or cell.variant not in self._arms or record.phase != "measured":
                    continue
                if cell.concurrency is not None:
                    continue
                place = cell.stage, cell.block, cell.repeat, record.index
                other = waiting.pop(place, None)
                if other is None or other[0] == cell.variant:  # or a cell was run again
                    waiting[place] = cell.variant, _answer(record)
                else:
                    answers = dict([other, (cell.variant, _answer(record))])
                    baseline, candidate = (answers[name] for name in self._arms)
                    found.append(Pair(baseline=baseline, candidate=candidate))
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{self._files.folder}: records cannot be read: {error!r}") from None
        return found


def _answer(record: RequestRecord) -> Answer:
    ttft_ms, per_token_ms = ttft_user_ms(record), tpot_ms(record)
    return Answer(
        ok=record.error is None,
        ttft_s=None if ttft_ms is None else ttft_ms / 1000,
        tpot_s=None if per_token_ms is None else per_token_ms / 1000,
    )
