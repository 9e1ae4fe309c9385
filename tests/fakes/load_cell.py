"""A cell for tests that plan nothing."""

from loadtests.plan.request import Cell, Part, PlannedRequest, Turn


def a_cell(n: int, concurrency: int | None = None) -> Cell:
    requests = tuple(
        PlannedRequest(
            offset_ns=i * 1000,
            phase="measured",
            turns=(Turn("user", (Part(i, 7),)),),
            max_tokens=i + 1,
            kind="chat",
            session=f"s{i}",
        )
        for i in range(n)
    )
    return Cell(
        index=3,
        stage="s",
        block=1,
        repeat=0,
        variant="a",
        rate_per_s=None if concurrency else 1.5,
        window_ns=(10, 20),
        end_ns=30,
        requests=requests,
        concurrency=concurrency,
    )
