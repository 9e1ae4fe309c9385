"""Who asks, and the place that was given to one request."""

from collections.abc import Callable

from serve_app.config.tenants import Tenant
from serve_app.domain.errors import NotAllowedError
from serve_app.routing.admission import Account, TokensNeed
from serve_app.routing.fair_queue import Line
from serve_app.serving.admission_refusals import limit_headers
from serve_app.serving.http import Headers

NO_NEED = TokensNeed(0, 0)


class Principal:
    """A tenant as this replica knows it until the next change of keys or limits."""

    __slots__ = (
        *("account", "cohort", "concurrent", "is_admin", "label", "models", "name"),
        "variants",
    )

    def __init__(
        self, tenant: Tenant, label: str, concurrent: int | None, account: Account | None
    ) -> None:
        self.name = tenant.name
        self.cohort = tenant.cohort
        self.models = tenant.models
        self.variants = tenant.variants
        self.is_admin = tenant.is_admin
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

    __slots__ = (
        *("_charged", "_done", "_is_settled", "_line", "_now", "_on_end"),
        *("began_s", "need", "principal", "used"),
    )

    def __init__(
        self,
        principal: Principal,
        need: TokensNeed,
        line: Line,
        now: Callable[[], float],
        on_end: Callable[["Ticket", Line], None],
    ) -> None:
        self.principal = principal
        self.need = need
        self.began_s = now()
        self.used: tuple[int | None, int | None] | None = None
        """Tokens of prompt and completion, by the answer's usage; None: nothing was answered."""
        self._charged = need.prompt + need.completion
        self._is_settled = False
        self._line = line
        self._now = now
        self._on_end = on_end
        self._done = False

    @property
    def tenant(self) -> str:
        """Its name; `anonymous` without a key."""
        return self.principal.name

    @property
    def cohort(self) -> str | None:
        """The cohort that its key puts it in; None: no one in particular."""
        return self.principal.cohort

    def settle(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count what the answer's usage says; None is not known, and costs what was reserved.

        A later call replaces an earlier one. A ticket that was never settled costs no tokens.
        """
        if self._done:
            return
        self.used = prompt_tokens, completion_tokens
        account = self.principal.account
        if account is not None:
            prompt = self.need.prompt if prompt_tokens is None else prompt_tokens
            completion = self.need.completion if completion_tokens is None else completion_tokens
            account.settle(self._charged, prompt + completion, self._now())
            self._charged = prompt + completion
        self._is_settled = True

    def release(self) -> None:
        """The request is over; safe to call twice."""
        if self._done:
            return
        account = self.principal.account
        if account is not None and not self._is_settled:
            account.settle(self._charged, 0, self._now())
        self._done = True
        self._on_end(self, self._line)

    def headers(self) -> Headers:
        """`x-ratelimit-*` as of now; none for a tenant without such limits."""
        account = self.principal.account
        return [] if account is None else limit_headers(account, self._now())
