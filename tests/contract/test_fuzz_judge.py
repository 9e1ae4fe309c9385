"""The judge of the fuzzed answers finds what it is there for."""

import json

import pytest

from tests.fakes.fuzz_judge import MAX_ERROR_BYTES, complaints
from tests.fakes.wire import Outcome, Reply, Talk

ERROR = {"message": "m", "type": "invalid_request_error", "param": None, "code": "path_not_found"}


def refusal(status: int = 404, marks=(("x-variant", "none"),), **changes) -> Reply:
    body = json.dumps({"error": {**ERROR, **changes}}).encode()
    headers = [("content-type", "application/json"), ("x-route-reason", "rejected"), *marks]
    return Reply(status, headers, body, whole=True)


def judged(*replies: Reply, ending="whole", well_formed=True, **talk) -> list[str]:
    return complaints(
        Talk((b"x",), **talk),
        Outcome(ending, list(replies)),
        well_formed=well_formed,
        variants={"a", "dying"},
        cut={"dying"},
    )


RETRY = (("x-variant", "none"), ("retry-after", "1"))
GOOD = [
    refusal(),
    refusal(503, RETRY, type="server_error", code="variant_unavailable"),
    Reply(500, [("x-variant", "a"), ("x-route-reason", "pinned")], b"the variant's", True),
    Reply(200, [("x-variant", "a"), ("x-route-reason", "sticky")], b"{}", True),
]


@pytest.mark.parametrize("reply", GOOD, ids=lambda reply: reply.status)
def test_good_answers(reply):
    assert judged(reply) == []


BAD = {
    "our own 500": refusal(500, type="server_error", code="server_error"),
    "the server's 500": Reply(500, [], b"Internal Server Error", True),
    "an unmarked 400": Reply(400, [], b"Invalid HTTP request received.", True),
    "an unknown variant": Reply(200, [("x-variant", "z"), ("x-route-reason", "sticky")], b"", True),
    "an unknown reason": Reply(200, [("x-variant", "a"), ("x-route-reason", "zz")], b"", True),
    "a mark twice": refusal(marks=(("x-variant", "none"), ("x-variant", "none"))),
    "an undocumented status": refusal(418),
    "503 without retry-after": refusal(503, type="server_error", code="variant_unavailable"),
    "a wrong retry-after": refusal(marks=(("x-variant", "none"), ("retry-after", "soon"))),
    "the wrong type": refusal(404, type="server_error"),
    "no code": refusal(code=None),
    "another error's code": refusal(code="body_too_large"),
    "more fields": refusal(more=1),
    "another shape": Reply(404, [*refusal().headers], b'{"detail": "no"}', True),
    "no JSON": Reply(404, [*refusal().headers], b"no", True),
    "an echo": refusal(message="x" * MAX_ERROR_BYTES),
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD)
def test_bad_answers(reply):
    assert judged(reply)


def test_how_a_conversation_ends():
    assert judged(ending="silent")
    assert judged(ending="nonsense")
    assert judged(ending="closed")
    assert judged(GOOD[0], ending="reset", n_answers=2)
    assert judged(GOOD[0], GOOD[0], n_answers=1)
    assert judged(ending="left", leaves=True) == []
    assert judged(Reply(400, [], b"Invalid", True), well_formed=False) == []
    assert judged(ending="closed", well_formed=False) == []
    cut = Reply(200, [("x-variant", "dying"), ("x-route-reason", "pinned")], b"", False)
    assert judged(cut, ending="closed") == []
