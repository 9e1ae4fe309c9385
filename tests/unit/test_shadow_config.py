"""What a shadow's configuration refuses, and says then."""

import pytest

from serve_app.config.parse import parse
from serve_app.config.shadow import ShadowConfig
from serve_app.domain.errors import ConfigError

GOOD = {"variant": "awq", "share_bp": 500}


def test_the_least_is_safe_by_default():
    config = parse(ShadowConfig, GOOD, where="shadow")
    assert config.only_greedy
    assert config.log is None
    config = parse(ShadowConfig, {**GOOD, "log": {"path": "/logs/x.jsonl"}}, where="shadow")
    assert config.log is not None
    assert not config.log.texts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share_bp": 10_001}, "share_bp"),
        ({"share_bp": -1}, "share_bp"),
        ({"variant": "Not A Name"}, "variant"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"max_queued": -1}, "max_queued"),
        ({"max_held_bytes": 6_000_000}, "raise it to 6291456"),
        ({"log": {"path": "relative.jsonl"}}, "log.path"),
        ({"log": {"path": "/logs/"}}, "log.path"),
        ({"log": {"path": "/x", "sample_bp": 0}}, "log.sample_bp"),
        ({"log": {"path": "/x", "text": True}}, "log.text is not a known key"),
        ({"shares": 1}, "shares is not a known key"),
    ],
)
def test_what_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        parse(ShadowConfig, {**GOOD, **change}, where="shadow")
