"""Admission in a loop: who gets a place, who waits, and what those hear who get none."""

import asyncio

import pytest

from serve_app.config.admission import AdmissionConfig
from serve_app.domain.errors import (
    ConfigError,
    HeadersTooLargeError,
    InvalidKeyError,
    NotAllowedError,
    QuotaError,
    RateLimitError,
)
from serve_app.routing.admission import TokensNeed
from serve_app.serving.admission import Admission
from tests.fakes.admission import (
    NOON_S,
    Clock,
    RecordingAdmissionMetrics,
    asks,
    key_of,
    tenant_entry,
    write_tenants,
)


class Gate:
    """Admission with a clock of the test's own, and what it counted."""

    def __init__(self, path) -> None:
        self.clock = Clock()
        self.metrics = RecordingAdmissionMetrics()
        self.path = path
        self.admission = Admission(
            self.clock, self.metrics, epoch=lambda: NOON_S, environ={}, tick_s=0.001
        )

    def configure(self, **config) -> Admission:
        self.admission.configure(AdmissionConfig(**config))
        return self.admission

    def tenants(self, _config=None, **tenants) -> Admission:
        write_tenants(self.path, **tenants)
        return self.configure(keys_file=str(self.path), **(_config or {}))

    def counted(self):
        """Rejections so far, by tenant and reason."""
        self.admission._report()
        total = {}
        for report in self.metrics.reports:
            for key, n in report.rejected.items():
                total[key] = total.get(key, 0) + n
        return total


@pytest.fixture
async def gate(tmp_path):
    gate = Gate(tmp_path / "keys.json")
    yield gate
    gate.admission.close()
    assert (gate.admission.in_flight, gate.admission.waiting) == (0, 0), "a place was lost"
    assert not gate.admission._wakes


async def settled() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestWithoutKeys:
    async def test_everybody_may_ask(self, gate):
        admission = gate.configure()
        for scope in (asks(), asks("acme")):
            ticket = await admission.admit(scope)
            assert (ticket.tenant, ticket.cohort, ticket.headers()) == ("anonymous", None, [])
            ticket.principal.require("m", "any")
            ticket.release()

    async def test_before_it_is_configured_too(self):
        ticket = await Admission(environ={}).admit(asks())
        ticket.release()

    async def test_closed_to_all_is_a_mistake(self, gate):
        with pytest.raises(ConfigError, match="nobody could ask"):
            gate.configure(anonymous=False)

    async def test_all_who_are_anonymous_share_their_limits(self, gate):
        admission = gate.configure(anonymous_limits={"requests_per_minute": 1, "burst": 1})
        (await admission.admit(asks())).release()
        with pytest.raises(RateLimitError) as refused:
            await admission.admit(asks("acme"))
        assert refused.value.retry_after_s == 60


class TestKeys:
    async def test_a_key_is_its_tenant(self, gate):
        admission = gate.tenants(acme={"cohort": "paying"}, other_one={})
        ticket = await admission.admit(asks("acme"))
        assert (ticket.tenant, ticket.cohort) == ("acme", "paying")
        ticket.release()

    @pytest.mark.parametrize(
        ("header", "said"),
        [
            (None, "no API key"),
            (b"", "no API key"),
            (b"Bearer ", "no API key"),
            (b"bearer", "no API key"),
            (b"Bearer qtl-nobodys", "opens nothing"),
            (b"Bearer \xff\xfe", "opens nothing"),
            (b"Basic cXRsOng=", "not understood"),
            (key_of("acme").encode(), "not understood"),
        ],
    )
    async def test_who_has_none_is_refused(self, gate, header, said):
        admission = gate.tenants(acme={})
        more = [] if header is None else [(b"authorization", header)]
        with pytest.raises(InvalidKeyError, match=said) as refused:
            await admission.admit(asks(None, *more))
        assert refused.value.response_headers[0][0] == b"www-authenticate"
        assert "nobodys" not in str(refused.value)

    async def test_the_scheme_is_of_any_case_and_spaces_are_no_part_of_a_key(self, gate):
        admission = gate.tenants(acme={})
        header = f"bEaReR   {key_of('acme')} ".encode()
        (await admission.admit(asks(None, (b"authorization", header)))).release()

    async def test_two_keys_at_once_are_none(self, gate):
        admission = gate.tenants(acme={}, rival={})
        second = (b"authorization", f"Bearer {key_of('rival')}".encode())
        with pytest.raises(InvalidKeyError):
            await admission.admit(asks("acme", second))

    async def test_with_anonymous_a_wrong_key_is_still_wrong(self, gate):
        admission = gate.tenants({"anonymous": True}, acme={})
        (await admission.admit(asks())).release()
        with pytest.raises(InvalidKeyError):
            await admission.admit(asks("nobody"))

    async def test_an_expired_key_opens_nothing(self, gate):
        entry = tenant_entry("acme")
        entry["keys"][0]["expires"] = "1970-01-01"
        admission = gate.tenants(acme=entry)
        with pytest.raises(InvalidKeyError):
            await admission.admit(asks("acme"))

    async def test_models_and_variants_that_a_key_may_not_use(self, gate):
        admission = gate.tenants(acme={"models": ["m"], "variants": ["int8", "awq"]})
        principal = admission.identify(asks("acme"))
        principal.require("m")
        principal.require("m", "int8")
        assert principal.allows("m", "awq")
        with pytest.raises(NotAllowedError, match=r"'m@bf16'.*awq, int8"):
            principal.require("m", "bf16")
        with pytest.raises(NotAllowedError, match="'secret'"):
            principal.require("secret")

    async def test_the_variable_names_the_file(self, tmp_path):
        file = write_tenants(tmp_path / "keys", acme={})
        admission = Admission(environ={"QUANTILE_API_KEYS_FILE": str(file)})
        admission.configure(AdmissionConfig())
        with pytest.raises(InvalidKeyError):
            admission.identify(asks())
        assert admission.identify(asks("acme")).name == "acme"
        admission.close()

    @pytest.mark.parametrize("name", ["", "/nowhere/keys"])
    async def test_a_file_that_is_not_there_refuses_the_configuration(self, name):
        admission = Admission(environ={"QUANTILE_API_KEYS_FILE": name})
        with pytest.raises(ConfigError, match="API keys"):
            admission.configure(AdmissionConfig())


class TestSizes:
    @pytest.mark.parametrize(
        "scope",
        [
            asks(None, *[(b"x", b"")] * 91),
            asks(None, (b"x", b"a" * 13_312)),
            asks(path="/" + "a" * 13_312),
        ],
        ids=["count", "bytes", "path"],
    )
    async def test_too_many_or_too_large_headers(self, gate, scope):
        with pytest.raises(HeadersTooLargeError):
            gate.configure().identify(scope)
        assert gate.counted() == {("anonymous", "headers_too_large"): 1}

    async def test_as_many_as_are_allowed(self, gate):
        gate.configure().identify(asks(None, *[(b"x", b"a" * 100)] * 90))


class TestTokens:
    async def test_what_is_reserved_and_what_it_cost(self, gate):
        admission = gate.tenants(acme={"tokens_per_minute": 600})
        ticket = await admission.admit(asks("acme"), TokensNeed(100, 400))
        assert dict(ticket.headers()) == {
            b"x-ratelimit-limit-tokens": b"600",
            b"x-ratelimit-remaining-tokens": b"100",
            b"x-ratelimit-reset-tokens": b"50s",
        }
        with pytest.raises(RateLimitError, match="may cost 200") as refused:
            await admission.admit(asks("acme"), TokensNeed(100, 100))
        assert (refused.value.kind, refused.value.retry_after_s) == ("tokens", 10)
        assert (b"x-ratelimit-remaining-tokens", b"100") in refused.value.response_headers
        ticket.settle(None, None)
        assert dict(ticket.headers())[b"x-ratelimit-remaining-tokens"] == b"100"
        ticket.settle(90, 10)
        assert dict(ticket.headers())[b"x-ratelimit-remaining-tokens"] == b"500"
        ticket.release()
        assert dict(ticket.headers())[b"x-ratelimit-remaining-tokens"] == b"500"

    async def test_usage_that_is_not_known_costs_what_was_reserved(self, gate):
        admission = gate.tenants(acme={"tokens_per_minute": 600})
        ticket = await admission.admit(asks("acme"), TokensNeed(100, 400))
        ticket.settle(None, None)
        ticket.release()
        ticket.settle(0, 0)
        assert dict(ticket.headers())[b"x-ratelimit-remaining-tokens"] == b"100"

    async def test_what_was_never_answered_costs_nothing(self, gate):
        admission = gate.tenants(acme={"tokens_per_minute": 600})
        ticket = await admission.admit(asks("acme"), TokensNeed(100, 400))
        ticket.release()
        assert dict(ticket.headers())[b"x-ratelimit-remaining-tokens"] == b"600"

    async def test_the_days_budget(self, gate):
        admission = gate.tenants(acme={"tokens_per_day": 100})
        ticket = await admission.admit(asks("acme"), TokensNeed(50, 50))
        ticket.settle(60, 60)
        ticket.release()
        with pytest.raises(QuotaError) as refused:
            await admission.admit(asks("acme"), TokensNeed(1, 1))
        assert (refused.value.code, refused.value.kind) == ("insufficient_quota",) * 2
        assert refused.value.retry_after_s == NOON_S
        assert (b"x-should-retry", b"false") in refused.value.response_headers

    async def test_what_can_never_fit_says_so(self, gate):
        admission = gate.tenants(acme={"tokens_per_minute": 100})
        with pytest.raises(RateLimitError, match="never") as refused:
            await admission.admit(asks("acme"), TokensNeed(100, 1))
        assert refused.value.retry_after_s is None
        assert (b"x-should-retry", b"false") in refused.value.response_headers

    async def test_tokens_are_counted_by_tenant(self, gate):
        admission = gate.tenants(acme={})
        ticket = await admission.admit(asks("acme"))
        ticket.settle(None, None)
        ticket.settle(7, 3)
        ticket.release()
        nothing = await admission.admit(asks("acme"))
        nothing.settle(0, 0)
        nothing.release()
        admission._report()
        tokens = sum(
            (report.tokens for report in gate.metrics.reports),
            start=type(gate.metrics.reports[0].tokens)(),
        )
        assert tokens == {("acme", "prompt"): 7, ("acme", "completion"): 3}


class TestPlaces:
    async def test_a_second_waits_for_the_first(self, gate):
        admission = gate.configure(max_in_flight=1)
        first = await admission.admit(asks())
        waits = asyncio.ensure_future(admission.admit(asks()))
        await settled()
        assert (admission.in_flight, admission.waiting) == (1, 1)
        first.release()
        first.release()
        second = await waits
        assert (admission.in_flight, admission.waiting) == (1, 0)
        second.release()

    async def test_who_waits_too_long_hears_when_to_come_again(self, gate):
        admission = gate.configure(max_in_flight=2, max_wait_s=0.01)
        early = await admission.admit(asks())
        gate.clock.now_s += 8
        early.release()  # requests take eight seconds here
        held = [await admission.admit(asks()) for _ in range(2)]
        with pytest.raises(RateLimitError, match="full") as refused:
            await admission.admit(asks())
        assert refused.value.retry_after_s == 4, "two places free up in eight seconds"
        assert refused.value.http_status == 429
        for ticket in held:
            ticket.release()
        assert gate.counted() == {("anonymous", "saturated"): 1}

    async def test_a_deadline_of_the_clients_own_ends_the_wait_and_keeps_nothing(self, gate):
        admission = gate.configure(max_in_flight=1, max_wait_s=60)
        first = await admission.admit(asks())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await admission.admit(asks())
        assert (admission.in_flight, admission.waiting) == (1, 0)
        first.release()

    async def test_no_room_to_wait(self, gate):
        admission = gate.configure(max_in_flight=1, max_waiting=0)
        first = await admission.admit(asks())
        with pytest.raises(RateLimitError, match="no room"):
            await admission.admit(asks())
        first.release()
        assert gate.counted() == {("anonymous", "queue_full"): 1}

    async def test_a_tenants_own_limit(self, gate):
        admission = gate.tenants({"max_wait_s": 0.01}, acme={"concurrent_requests": 1}, rival={})
        mine = await admission.admit(asks("acme"))
        others = [await admission.admit(asks("rival")) for _ in range(3)]
        with pytest.raises(RateLimitError, match="acme has 1 requests under way"):
            await admission.admit(asks("acme"))
        for ticket in [mine, *others]:
            ticket.release()
        assert gate.counted() == {("acme", "tenant_concurrency"): 1}

    async def test_a_client_that_leaves_frees_its_place_in_the_line(self, gate):
        admission = gate.configure(max_in_flight=1)
        first = await admission.admit(asks())
        leaves, stays = (asyncio.ensure_future(admission.admit(asks())) for _ in range(2))
        await settled()
        leaves.cancel()
        await settled()
        assert admission.waiting == 1
        first.release()
        (await stays).release()

    async def test_a_client_that_leaves_as_its_turn_comes_hands_it_on(self, gate):
        admission = gate.configure(max_in_flight=1)
        first = await admission.admit(asks())
        leaves, stays = (asyncio.ensure_future(admission.admit(asks())) for _ in range(2))
        await settled()
        first.release()  # wakes `leaves`, which is cancelled before it can go on
        leaves.cancel()
        ticket = await asyncio.wait_for(stays, 1)
        assert leaves.cancelled()
        assert (admission.in_flight, admission.waiting) == (1, 0)
        ticket.release()

    async def test_who_gets_no_place_gets_its_tokens_and_its_turn_back(self, gate):
        admission = gate.tenants(
            {"max_in_flight": 1, "max_wait_s": 0.01},
            acme={"tokens_per_minute": 600, "requests_per_minute": 2, "burst": 2},
        )
        first = await admission.admit(asks("acme"), TokensNeed(100, 0))
        with pytest.raises(RateLimitError):
            await admission.admit(asks("acme"), TokensNeed(500, 0))
        left = dict(first.headers())
        assert left[b"x-ratelimit-remaining-tokens"] == b"500"
        assert left[b"x-ratelimit-remaining-requests"] == b"1"
        first.release()

    async def test_one_tenant_cannot_starve_another(self, gate):
        admission = gate.tenants({"max_in_flight": 1, "max_waiting": 8}, greedy={}, modest={})
        first = await admission.admit(asks("greedy"))
        greedy = [asyncio.ensure_future(admission.admit(asks("greedy"))) for _ in range(20)]
        await settled()
        modest = asyncio.ensure_future(admission.admit(asks("modest")))
        await settled()
        assert sum(task.done() for task in greedy) == 13, "twelve found no room, one made way"
        first.release()
        next_of_greedy = await greedy[0]
        next_of_greedy.release()
        (await asyncio.wait_for(modest, 1)).release()
        refused = []
        for task in greedy[1:]:
            try:
                (await task).release()
            except RateLimitError as error:
                refused.append(error.retry_after_s)
        assert len(refused) == 13
        assert None not in refused

    async def test_storm_of_arrivals_ends_and_departures_loses_nothing(self, gate):
        admission = gate.tenants(
            {"max_in_flight": 3, "max_waiting": 20, "max_wait_s": 0.01},
            a={"concurrent_requests": 2},
            b={},
        )
        most = 0

        async def one(number: int) -> None:
            nonlocal most
            ticket = await admission.admit(asks("ab"[number % 2]))
            try:
                most = max(most, admission.in_flight)
                await asyncio.sleep(0.0005 * (number % 5))
            finally:
                ticket.release()

        tasks = [asyncio.ensure_future(one(number)) for number in range(300)]
        for number, task in enumerate(tasks):
            if number % 7 == 0:
                task.cancel()
            if number % 11 == 0:
                await asyncio.sleep(0.001)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 3
        assert any(result is None for result in done)
        assert {type(result) for result in done if result is not None} <= {
            RateLimitError,
            asyncio.CancelledError,
        }


class TestLive:
    async def test_a_higher_limit_wakes_who_waits(self, gate):
        admission = gate.configure(max_in_flight=1)
        first = await admission.admit(asks())
        waits = asyncio.ensure_future(admission.admit(asks()))
        await settled()
        gate.configure(max_in_flight=2)
        (await asyncio.wait_for(waits, 1)).release()
        first.release()

    async def test_a_lower_limit_ends_nothing(self, gate):
        admission = gate.configure(max_in_flight=3, max_wait_s=0.01)
        held = [await admission.admit(asks()) for _ in range(3)]
        gate.configure(max_in_flight=1, max_wait_s=0.01)
        held.pop().release()
        with pytest.raises(RateLimitError):
            await admission.admit(asks())
        for ticket in held:
            ticket.release()
        (await admission.admit(asks())).release()

    async def test_a_wrong_configuration_changes_nothing(self, gate):
        admission = gate.tenants(acme={})
        with pytest.raises(ConfigError):
            gate.configure(keys_file="/nowhere/keys")
        assert admission.identify(asks("acme")).name == "acme"

    async def test_another_key_is_good_within_a_tick_and_the_old_one_is_not(self, gate):
        admission = gate.tenants(acme={"requests_per_minute": 60, "burst": 2})
        first = await admission.admit(asks("acme"))
        entry = tenant_entry("new")
        write_tenants(gate.path, acme={**entry, "requests_per_minute": 120, "burst": 4})
        for _ in range(1000):
            try:
                admission.identify(asks("new"))
                break
            except InvalidKeyError:
                await asyncio.sleep(0.002)
        with pytest.raises(InvalidKeyError):
            admission.identify(asks("acme"))
        second = await admission.admit(asks("new"))
        assert second.tenant == "acme"
        assert dict(second.headers())[b"x-ratelimit-remaining-requests"] == b"0", (
            "of the two that were left before, both are used: no fresh budget"
        )
        first.release()
        second.release()

    async def test_a_broken_file_changes_nothing_and_is_told(self, gate, caplog):
        admission = gate.tenants(acme={})
        gate.path.write_text("tenants: {acme: {keys: [{sha256: qtl-oops-a-real-key}]}}")
        with caplog.at_level("ERROR", logger="ray.serve"):
            for _ in range(1000):
                if any(report.keys_stale for report in gate.metrics.reports):
                    break
                await asyncio.sleep(0.002)
        assert admission.identify(asks("acme")).name == "acme"
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 1, "said once, not once a second"
        assert "sha256 needs 64 hexadecimal digits" in errors[0].getMessage()
        assert "oops" not in errors[0].getMessage(), "it may be a key"
        write_tenants(gate.path, acme={}, more={})
        for _ in range(1000):
            if gate.metrics.reports[-1].keys_stale is False:
                break
            await asyncio.sleep(0.002)
        assert admission.identify(asks("more")).name == "more"


async def test_labels_are_bounded(tmp_path):
    metrics = RecordingAdmissionMetrics()
    admission = Admission(metrics=metrics, environ={})
    names = [f"t{number}" for number in range(300)]
    file = write_tenants(tmp_path / "keys", **{name: {} for name in names})
    admission.configure(AdmissionConfig(keys_file=str(file)))
    for name in names:
        (await admission.admit(asks(name))).release()
    for number in range(500):
        with pytest.raises(InvalidKeyError):
            admission.identify(asks(f"guess-{number}"))
    admission.close()
    (counts,) = metrics.reports
    assert len(counts.requests) == 100
    assert counts.requests["other"] == 201
    assert counts.rejected == {("anonymous", "bad_key"): 500}
