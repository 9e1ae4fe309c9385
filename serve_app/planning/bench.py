"""How long packing takes and how good it is: `python -m serve_app.planning.bench`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from statistics import mean, pstdev
from time import perf_counter

from serve_app.planning.any_order import any_order_gpus
from serve_app.planning.fleet import Demand, Packing, Pool
from serve_app.planning.options import SizesByType
from serve_app.planning.packing import pack
from serve_app.planning.whatif import cheapest, update_headroom

SEEDS = range(5)
PRICES = {"L4": 0.8, "A10G": 1.0, "L40S": 1.9, "H100": 8.0}


@dataclass(frozen=True)
class Case:
    """Demands on pools, as pack takes them."""

    demands: list[Demand]
    pools: list[Pool]
    sizes: SizesByType | None = None


def one_type(variants: int, gpus: int, random: Random, teams: bool = False) -> Case:
    """Variants of 5 % to 95 % of a GPU with 1 to 3 replicas at least; every tenth may be a team."""
    demands = []
    for i in range(variants):
        minimum = random.randint(1, 3)
        maximum = minimum + random.randint(0, 4)
        width = 2 if teams and i % 10 == 0 else 1
        size = 10_000 * width if width > 1 else random.randint(500, 9_500)
        demands.append(
            Demand(f"v{i}", size, gpus=width, minimum=minimum, maximum=maximum, weight=i % 3 + 1)
        )
    return Case(demands, [Pool("L4", gpus, gpus_per_node=4 if teams else 1)])


def several_types(variants: int, gpus: int, random: Random) -> Case:
    """As above on four GPU types: each variant runs on two or more, smaller on a larger GPU."""
    case = one_type(variants, gpus, random)
    pools = [Pool(gpu, gpus // 4, 1, price) for gpu, price in PRICES.items()]
    scale = {"L4": 1.0, "A10G": 1.0, "L40S": 0.5, "H100": 0.3}
    sizes = {
        d.name: {g: max(1, int(d.size_bp * scale[g])) for g in random.sample(list(PRICES), 3)}
        for d in case.demands
    }
    return Case(case.demands, pools, sizes)


CASES: dict[str, Callable[[Random], Case]] = {
    "8 variants, one type": lambda random: one_type(8, 40, random),
    "50 variants, one type": lambda random: one_type(50, 200, random),
    "1,000 variants, 4,000 GPUs": lambda random: one_type(1000, 4000, random),
    "1,000 variants with teams": lambda random: one_type(1000, 4000, random, teams=True),
    "10 variants, four types": lambda random: several_types(10, 80, random),
    "1,000 variants, four types": lambda random: several_types(1000, 4000, random),
}


def questions(case: Case, packing: Packing) -> Iterator[tuple[str, Callable[[], object]]]:
    """What `quantile plan` asks beside the packing."""
    use = packing.types[0]
    yield "any order", lambda: any_order_gpus(use.demands, use.pool, surge=1)
    yield "headroom", lambda: update_headroom(packing)
    yield "cheapest", lambda: cheapest(case.demands, case.pools, case.sizes)


def gap(packing: Packing) -> float:
    """How far from the lower bound, in percent: of the price, or of GPUs without one."""
    cost, bound = packing.price_usd_per_hour, packing.lower_bound_usd_per_hour
    if cost is None or bound is None:
        cost, bound = packing.needed_gpus, packing.lower_bound_gpus
    return 100 * (cost - bound) / bound


def main() -> None:
    """Print mean, spread and worst over the seeds, in milliseconds of this machine."""
    print(f"{'':30}{'question':12}{'mean ms':>9}{'± sd':>8}{'worst':>8}{'gap %':>8}{'exact':>7}")
    for title, make in CASES.items():
        times: dict[str, list[float]] = {}
        packings = []
        for seed in SEEDS:
            case = make(Random(seed))
            started = perf_counter()
            packing = pack(case.demands, case.pools, case.sizes)
            times.setdefault("pack", []).append(perf_counter() - started)
            packings.append(packing)
            for name, ask in questions(case, packing):
                started = perf_counter()
                ask()
                times.setdefault(name, []).append(perf_counter() - started)
        for name, seconds in times.items():
            ms = [1000 * s for s in seconds]
            row = f"{title:30}{name:12}{mean(ms):9.1f}{pstdev(ms):8.1f}{max(ms):8.1f}"
            if name == "pack":
                row += f"{mean(map(gap, packings)):8.2f}"
                row += f"{sum(p.exact for p in packings):5}/{len(packings)}"
            print(row)


if __name__ == "__main__":
    main()
