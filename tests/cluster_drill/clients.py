"""Open-loop traffic to several ingresses, as behind a balancer."""

from collections import Counter
from collections.abc import Sequence

from tests.fakes.drill import CHAT, Driver, Fate, Sent, exchange, fate


class Clients(Driver):
    """Each request goes to the next of `base_urls`, which may change meanwhile.

    One of whose answer nothing came before its connection failed is asked again, of the ingress
    after that, `n_tries` times in all. `retried` counts the requests for which that was needed.
    """

    def __init__(
        self, base_urls: Sequence[str], model: str, *, rate_per_s: float, n_tokens: int
    ) -> None:
        super().__init__(base_urls[0], model, rate_per_s=rate_per_s, n_tokens=n_tokens)
        self.base_urls = list(base_urls)
        self.n_tries = 1
        self.retried: Counter[str] = Counter()

    async def _ask(self, sent: Sent, number: int) -> None:
        def judge(status: int, body: bytes) -> tuple[Fate, str]:
            return fate(status, body, sent.streams, self._n_tokens)

        body = self._body(sent, number)
        for n_asked in range(1, self.n_tries + 1):
            url = self.base_urls[(number + n_asked) % len(self.base_urls)] + CHAT
            sent.status = None
            sent.fate, sent.detail = await exchange(self._session, url, body, sent, judge)
            if sent.status is not None:
                return
            self.retried[sent.phase] += n_asked == 1 and self.n_tries > 1
