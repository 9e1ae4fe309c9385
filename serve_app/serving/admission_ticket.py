"""Who asks, and the place that was given to one request."""

from collections.abc import Callable

from serve_app.config.tenants import Tenant
from serve_app.domain.errors import NotAllowedError
from serve_app.routing.admission import Account, TokensNeed
from serve_app.routing.fair_queue import Line
from serve_app.serving.admission_refusals import limit_headers
from serve_app.serving.http import Headers

NO_NEED = TokensNeed(0, 0)


class Caller:
    """A tenant as this replica knows it until the next change of keys or limits."""

    __slots__ = ("account", "cohort", "concurrent", "label", "models", "name", "variants")

    def __init__(
        self, tenant: Tenant, label: str, concurrent: int | None, account: Account | None
    ) -> None:
        self.name = tenant.name
        self.cohort = tenant.cohort
        self.models = tenant.models
        self.variants = tenant.variants
        self.label = label
        """Of metrics."""
        self.concurrent = concurrent
        self.account = account
        """None: neither its rate nor its tokens are limited."""

    def allows(self, model: str, variant: str | None = None) -> bool:
        """Whether it may name this alias, and be served by this variant."""
        if self.models is not None and model not in self.models:
            return False
        return variant is None or self.variants is None or variant in self.variants

    def require(self, model: str, variant: str | None = None) -> None:
        """Raises NotAllowedError where `allows` is False."""
        if not self.allows(model, variant):
            what = model if variant is None else f"{model}@{variant}"
            may = {"models": self.models, "variants": self.variants}
            told = "; ".join(f"{k}: {', '.join(sorted(v))}" for k, v in may.items() if v)
            raise NotAllowedError(
                f"{self.name} has no access to {what!r}; it may use {told or 'nothing'}"
            )


class Ticket:
    """One admitted request's place, and the tokens that are reserved for it.

    `settle` as soon as a variant answers and again when the answer is over, `release` in any case.
    """

    __slots__ = ("_counted", "_done", "_line", "_now", "_on_end", "began_s", "caller", "need")

    def __init__(
        self,
        caller: Caller,
        need: TokensNeed,
        line: Line,
        now: Callable[[], float],
        on_end: Callable[["Ticket", Line], None],
    ) -> None:
        self.caller = caller
        self.need = need
        self.began_s = now()
        self._counted: float | None = None
        self._line = line
        self._now = now
        self._on_end = on_end
        self._done = False

    @property
    def tenant(self) -> str:
        """Its name; `anonymous` without a key."""
        return self.caller.name

    @property
    def cohort(self) -> str | None:
        """The cohort that its key puts it in."""
        return self.caller.cohort

    @property
    def variants(self) -> frozenset[str] | None:
        """The variants that may serve it; None: all."""
        return self.caller.variants

    def allows(self, model: str, variant: str | None = None) -> bool:
        """As `Caller.allows`."""
        return self.caller.allows(model, variant)

    def require(self, model: str, variant: str | None = None) -> None:
        """As `Caller.require`."""
        self.caller.require(model, variant)

    def settle(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count what the answer's usage says; None is not known, and costs what was reserved.

        A later call replaces an earlier one. A ticket that was never settled costs no tokens.
        """
        account = self.caller.account
        if account is None or self._done:
            return
        prompt = self.need.prompt if prompt_tokens is None else prompt_tokens
        completion = self.need.completion if completion_tokens is None else completion_tokens
        before = sum(self.need) if self._counted is None else self._counted
        self._counted = prompt + completion
        account.settle(before, self._counted, self._now())

    def release(self) -> None:
        """The request is over; safe to call twice."""
        if self._done:
            return
        account = self.caller.account
        if account is not None and self._counted is None:
            account.settle(sum(self.need), 0, self._now())
        self._done = True
        self._on_end(self, self._line)

    def headers(self) -> Headers:
        """`x-ratelimit-*` as of now; none for a tenant without such limits."""
        account = self.caller.account
        return [] if account is None else limit_headers(account, self._now())
