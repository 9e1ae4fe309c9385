"""The policy as Serve calls it, and the ledger where the variants meet."""

import gc
from types import SimpleNamespace

import pytest

from serve_app.scaling import ledger, serve_policy
from serve_app.scaling.ledger import Ledger
from serve_app.scaling.serve_policy import KV_USE, RUNNING, SERVED, WAITING, VariantAutoscaler

HALF = {"type": "L4", "fraction": 0.5}
TICK_S = 0.25


@pytest.fixture(autouse=True)
def book(monkeypatch):
    monkeypatch.setattr(ledger, "LEDGER", Ledger())


class Serve:
    """Calls policies as Serve's controller does: in turn, and not at all where a sleeping variant
    has requests waiting (it then starts one replica by itself).
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.variants: dict[str, SimpleNamespace] = {}

    def add(self, name: str, *, target=1, minimum=0, maximum=4, fraction=0.5, **kwargs) -> None:
        policy = VariantAutoscaler(
            **{
                "gpu": HALF | {"fraction": fraction},
                "budget": {"L4": 1},
                "upscale_delay_s": 1,
                "downscale_delay_s": 5,
                "idle_s": 10,
                **kwargs,
            }
        )
        self.variants[name] = SimpleNamespace(
            policy=policy, target=target, minimum=minimum, maximum=maximum, ongoing=0, served=0
        )

    def run(self, seconds: float, *, starts: bool = True) -> dict[str, int]:
        """Targets after a time. New replicas serve at once, or (`starts=False`) never."""
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            for name, variant in self.variants.items():
                variant.running = getattr(variant, "running", variant.target)
                variant.served += variant.ongoing > 0
                if variant.running == 0 and variant.ongoing > 0:
                    variant.target = max(1, variant.target)
                else:
                    decided, _ = variant.policy(self._context(name, variant))
                    variant.target = max(variant.minimum, min(variant.maximum, decided))
            for variant in self.variants.values():
                if starts or variant.target < variant.running:
                    variant.running = variant.target
        return {name: variant.target for name, variant in self.variants.items()}

    def _context(self, name, variant):
        n = variant.running
        stats = {RUNNING: variant.ongoing, WAITING: 0, SERVED: variant.served, KV_USE: 0.1}
        values = {k: {f"r{i}": v / n for i in range(n)} for k, v in stats.items()} if n else {}
        return SimpleNamespace(
            app_name=name,
            current_num_replicas=n,
            target_num_replicas=variant.target,
            total_num_requests=float(variant.ongoing),
            total_queued_requests=0.0,
            aggregated_metrics=values,
            raw_metrics={
                k: {r: [SimpleNamespace(value=v)] for r, v in each.items()}
                for k, each in values.items()
            },
            capacity_adjusted_min_replicas=variant.minimum,
            capacity_adjusted_max_replicas=variant.maximum,
            current_time=self.now_s,
            config=SimpleNamespace(get_target_ongoing_requests=lambda: 4.0),
        )


@pytest.fixture
def serve():
    return Serve()


def test_a_variant_alone_grows_up_to_the_budget(serve):
    serve.add("a")
    serve.variants["a"].ongoing = 30
    assert serve.run(5) == {"a": 2}


def test_without_a_gpu_nothing_is_shared(serve):
    serve.add("a", gpu=None, budget=None)
    serve.variants["a"].ongoing = 30
    assert serve.run(5) == {"a": 4}


def test_two_variants_share_by_weight(serve):
    for name, weight in (("a", 1.0), ("b", 4.0)):
        serve.add(name, fraction=0.25, weight=weight)
        serve.variants[name].ongoing = 16
    assert serve.run(10) == {"a": 1, "b": 3}


def test_going_to_sleep_makes_room(serve):
    serve.add("a")
    serve.add("b")
    serve.variants["a"].ongoing = 8
    assert serve.run(9) == {"a": 1, "b": 1}
    assert serve.run(5) == {"a": 2, "b": 0}


def test_one_that_wakes_gets_room_although_its_policy_is_not_asked(serve):
    serve.add("a", target=2)
    serve.add("b", target=0)
    serve.variants["a"].ongoing = 8
    assert serve.run(3) == {"a": 2, "b": 0}
    serve.variants["b"].ongoing = 1
    assert serve.run(3, starts=False) == {"a": 1, "b": 1}
    assert serve.run(3) == {"a": 1, "b": 1}


def test_the_woken_stay_awake_for_an_idle_period_though_their_request_left(serve):
    serve.add("a", target=1)
    serve.add("b", target=0)
    serve.run(30)
    serve.variants["b"].ongoing = 1
    serve.run(2, starts=False)
    serve.variants["b"].ongoing = 0
    assert serve.run(8, starts=False)["b"] == 1
    assert serve.run(5, starts=False)["b"] == 0


def test_a_variant_that_is_deleted_gives_its_share_back(serve):
    serve.add("a")
    serve.add("b")
    serve.variants["a"].ongoing = serve.variants["b"].ongoing = 8
    assert serve.run(5) == {"a": 1, "b": 1}
    del serve.variants["b"]
    gc.collect()
    assert serve.run(5) == {"a": 2}


def test_after_a_restart_of_the_controller_nothing_changes_before_all_have_reported(serve):
    """The first to report would otherwise see the whole budget free."""
    for name in ("a", "b"):
        serve.add(name)
        serve.variants[name].ongoing = 8
    first = serve.variants["a"].policy(serve._context("a", _with(serve.variants["a"], running=1)))
    assert first[0] == 1
    assert serve.run(10) == {"a": 1, "b": 1}


def _with(variant, **facts):
    variant.__dict__.update(facts)
    return variant


def test_the_smallest_stated_budget_holds(serve):
    serve.add("a", budget={"L4": 9})
    serve.add("b", budget={"L4": 1})
    for variant in serve.variants.values():
        variant.ongoing = 30
    assert sum(serve.run(10).values()) == 2


def test_new_settings_keep_what_was_learnt(serve):
    serve.add("a", target=1)
    serve.run(9)
    old = serve.variants["a"].policy
    serve.variants["a"].policy = VariantAutoscaler(gpu=HALF, budget={"L4": 1}, idle_s=10)
    del old
    assert serve.run(2) == {"a": 0}, "the idle time before the change counts"


def test_wrong_arguments_leave_the_replicas_as_they_are(serve, caplog):
    """An exception would stop Serve's control loop for every application."""
    serve.add("a", target=3, wieght=2.0)
    serve.variants["a"].ongoing = 100
    assert serve.run(5) == {"a": 3}
    assert "wieght" in caplog.text


def test_a_fault_of_our_own_leaves_the_replicas_as_they_are(serve, caplog, monkeypatch):
    serve.add("a", target=2)
    with monkeypatch.context() as patch:
        patch.setattr(serve_policy, "observe", lambda _: 1 / 0)
        assert serve.run(5) == {"a": 2}
    assert caplog.text.count("cannot be scaled now") == 1
    serve.variants["a"].ongoing = 100
    assert serve.run(5) == {"a": 2}, "the budget"
    serve.variants["a"].ongoing = 0
    assert serve.run(30) == {"a": 0}, "it is scaled again"


def test_replicas_that_all_died_are_waited_for_and_not_given_away(serve):
    """Serve asks no policy of a variant without replicas, and starts all that it aimed at."""
    serve.add("a", target=3, budget={"L4": 2})
    serve.add("b", budget={"L4": 2})
    serve.variants["a"].ongoing, serve.variants["b"].ongoing = 12, 4
    assert serve.run(5) == {"a": 3, "b": 1}
    serve.variants["a"].running = serve.variants["a"].ongoing = 0
    serve.run(2 * TICK_S, starts=False)
    serve.variants["a"].ongoing = 12
    assert serve.run(5, starts=False) == {"a": 3, "b": 1}
    course = [serve.run(TICK_S)["a"] for _ in range(50)]
    assert set(course) == {3}


def test_a_change_of_settings_gives_nothing_away_meanwhile(serve):
    for name in ("a", "b"):
        serve.add(name)
        serve.variants[name].ongoing = 8
    assert serve.run(5) == {"a": 1, "b": 1}
    a = serve.variants.pop("a")
    a.policy = None
    gc.collect()
    assert serve.run(TICK_S) == {"b": 1}
    a.policy = VariantAutoscaler(gpu=HALF, budget={"L4": 1})
    serve.variants["a"] = a
    assert serve.run(5) == {"b": 1, "a": 1}
