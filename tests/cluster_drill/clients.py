"""Open-loop traffic to several ingresses, as behind a balancer."""

from collections import Counter
from collections.abc import Sequence

import aiohttp

from tests.fakes.drill import CHAT, LIMIT_S, Driver, Fate, Sent, exchange, fate


class Clients(Driver):
    """Each request goes to the next of `base_urls`, which may change meanwhile.

    One of whose answer nothing came before its connection failed, or was silent for too long, is
    asked again, of the ingress after that, `n_tries` times in all. `retried` counts the requests
    for which that was needed, by phase.
    """

    timeout = aiohttp.ClientTimeout(total=LIMIT_S, sock_connect=3, sock_read=20)

    def __init__(
        self, base_urls: Sequence[str], model: str, *, rate_per_s: float, n_tokens: int
    ) -> None:
        super().__init__(base_urls[0], model, rate_per_s=rate_per_s, n_tokens=n_tokens)
        self.base_urls = list(base_urls)
        self.n_tries = 1
        self.retried: Counter[str] = Counter()
        self._asked: dict[int, list[str]] = {}

    def asked(self, sent: Sent) -> list[str]:
        """The ingresses that were asked, one after the other."""
        return self._asked[id(sent)]

    async def _ask(self, sent: Sent, number: int) -> None:
        def judge(status: int, body: bytes) -> tuple[Fate, str]:
            return fate(status, body, sent.streams, self._n_tokens)

        body, asked = self._body(sent, number), self._asked.setdefault(id(sent), [])
        while sent.status is None and len(asked) < self.n_tries:
            self.retried[sent.phase] += len(asked) == 1
            asked.append(self.base_urls[(number + len(asked)) % len(self.base_urls)])
            url = asked[-1] + CHAT
            sent.fate, sent.detail = await exchange(self._session, url, body, sent, judge)
