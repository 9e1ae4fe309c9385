"""A campaign's records as pairs: the same request of both variants."""

import asyncio

import pytest

from loadtests.records.manifest import Ending, EndReason
from serve_app.config.rollout_evidence import CampaignConfig
from serve_app.domain.errors import ConfigError
from serve_app.rollouts.evidence_campaign import CampaignEvidence
from tests.fakes.run_folders import FakeRun, campaign


@pytest.fixture
def run(tmp_path):
    run = FakeRun(tmp_path / "run", campaign())
    run.write_manifest(n_cells=None)
    return run


def evidence(run: FakeRun, *arms: str, mark: int = 0, look_pairs: int = 30) -> CampaignEvidence:
    config = CampaignConfig(kind="campaign", folder=run.files.folder, look_pairs=look_pairs)
    return CampaignEvidence(config, *(arms or ("bf16", "awq")), mark)


def take(source: CampaignEvidence):
    return asyncio.run(source.take()).pairs


def test_requests_of_one_block_and_index_are_pairs(run):
    for block in range(2):
        for variant in ("bf16", "fp8", "awq"):
            run.add_cell("light", block, variant, 8, 5.0)
    source = evidence(run)
    pairs = take(source)
    assert len(pairs) == 30
    assert pairs.ok.all()
    # fp8 takes 0.72 of bf16's time, awq 0.98
    ratios = take(evidence(run, "bf16", "fp8")).latencies_s["ttft"]
    assert (ratios[:, 1] / ratios[:, 0]).mean() < 0.95
    total = len(pairs)
    while len(more := take(source)):
        total += len(more)
    assert source.mark == total > 60


def test_a_campaign_under_way_is_followed_and_its_end_is_the_end(run):
    run.add_cell("light", 0, "bf16", 8, 5.0)
    source = evidence(run, look_pairs=1000)
    assert len(take(source)) == 0
    assert not source.is_exhausted
    run.add_cell("light", 0, "awq", 8, 5.0)
    n = len(take(source))
    assert n > 20
    assert not source.is_exhausted
    run.files.write_ending(Ending(reason=EndReason.COMPLETE))
    assert len(take(source)) == 0
    assert source.is_exhausted


def test_after_a_restart_no_pair_counts_twice(run):
    for variant in ("bf16", "awq"):
        run.add_cell("light", 0, variant, 8, 5.0)
    first = evidence(run, look_pairs=10)
    seen = take(first)
    again = evidence(run, mark=first.mark, look_pairs=10)
    rest = take(again)
    assert seen.latencies_s["ttft"].tolist() != rest.latencies_s["ttft"].tolist()
    assert again.mark == 20


def test_failures_are_failures_of_their_arm(run):
    for block in range(4):
        for variant in ("bf16", "int8<b>"):
            run.add_cell("light", block, variant, 10, 10.0)
    pairs = take(evidence(run, "bf16", "int8<b>", look_pairs=1000))
    assert pairs.ok[:, 0].all()
    assert 0 < (~pairs.ok[:, 1]).mean() < 0.1


def test_a_closed_loop_has_no_pairs(run):
    for variant in ("bf16", "awq"):
        run.add_cell("light", 0, variant, 8, 5.0, concurrency=4)
    assert len(take(evidence(run))) == 0


def test_a_folder_without_these_variants_or_without_a_run_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="without gptq; it has bf16, fp8"):
        evidence(run, "bf16", "gptq")
    with pytest.raises(ConfigError, match="not the folder of a load run"):
        CampaignEvidence(CampaignConfig(kind="campaign", folder=tmp_path), "bf16", "awq")
