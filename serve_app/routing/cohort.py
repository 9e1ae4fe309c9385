"""Which cohort a caller belongs to: the first rule that fits."""

from collections.abc import Iterable, Sequence

from serve_app.domain.traffic import Cohort


def cohort_of(
    cohorts: Sequence[Cohort],
    headers: Iterable[tuple[bytes, bytes]],
    tenant: str | None = None,
    key_cohort: str | None = None,
) -> Cohort | None:
    """The caller's cohort, or None.

    `tenant` and `key_cohort` come from the API key. `headers` are the request's, names in lower
    case: any client can send them, so a cohort that costs money is better tied to keys.
    """
    if not cohorts:
        return None
    sent = dict(headers) if any(each.headers for each in cohorts) else {}
    for each in cohorts:
        if key_cohort == each.name or (tenant is not None and tenant in each.tenants):
            return each
        for name, values in each.headers.items():
            value = sent.get(name.encode())
            if value is not None and value.decode("latin-1") in values:
                return each
    return None
