"""From a price per hour and a capacity to the cost of a million output tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.advise.contrasts import Interval
from serve_app.advise.evidence import Capacity, Memory
from serve_app.domain.gpu import GpuProfile

SECONDS_PER_HOUR = 3600
TOKENS = 1_000_000
SEARCH = "the highest rate within the SLO: quantile loadtest configs/campaigns/saturation.yaml"
"""What bounds a capacity."""
REPLICAS = "runs that say how many replicas there were: quantile loadtest against quantile serve"


@dataclass(frozen=True)
class Priced:
    """A cost, and what would give one, or bound the one that there is."""

    usd_per_million: Interval | None
    gap: str | None = None


def cost_of(
    capacity: Capacity | None,
    memory: Memory | None,
    replicas: int | None,
    catalogue: Mapping[str, GpuProfile],
    usd_per_hour: float | None,
) -> Priced:
    """What a million output tokens cost at the capacity; input tokens are in the price.

    `usd_per_hour` is the price of all that one variant's replicas ran on while they were measured.
    Without it, it is the price of the GPUs that so many replicas fill: a replica that was alone on
    a GPU is charged all of it, since its neighbours were idle and a saturated GPU has nothing to
    share. The interval is the capacity's: open where no rate that was tried failed, so that the
    tokens may be cheaper. `replicas` is None where the runs do not say how many there were, or not
    the same: then there is no cost of one.
    """
    if replicas is None:
        return Priced(None, REPLICAS)
    if capacity is None:
        return Priced(None, SEARCH)
    per_replica = _usd_per_hour(memory, replicas, catalogue, usd_per_hour)
    if per_replica is None:
        return Priced(None, "a price: --gpu TYPE with one in configs/gpus.yaml, or --usd-per-hour")
    tokens = capacity.output_tokens_per_s
    known = Interval(
        _usd_per_million(per_replica, tokens.value),
        None if tokens.high is None else _usd_per_million(per_replica, tokens.high),
        None if tokens.low is None else _usd_per_million(per_replica, tokens.low),
    )
    return Priced(known, SEARCH if tokens.high is None else None)


def _usd_per_million(usd_per_hour: float, tokens_per_s: float) -> float:
    return usd_per_hour / (tokens_per_s * SECONDS_PER_HOUR) * TOKENS


def _usd_per_hour(
    memory: Memory | None,
    replicas: int,
    catalogue: Mapping[str, GpuProfile],
    usd_per_hour: float | None,
) -> float | None:
    """Of one replica."""
    if usd_per_hour is not None:
        return usd_per_hour / replicas
    if memory is None or memory.gpu is None:
        return None
    price = catalogue[memory.gpu].price_usd_per_hour
    if price is None:
        return None
    if not memory.replicas_per_gpu:
        return price * memory.ranks
    return price * -(-replicas // memory.replicas_per_gpu) / replicas
