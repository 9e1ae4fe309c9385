"""vLLM's own span in the client's trace, below ours, received over OTLP gRPC."""

import httpx
import pytest

from tests.engine_cpu.conftest import MODEL
from tests.fakes.otlp import Span, descends
from tests.fakes.serve_client import CHAT, chat, replica_pids

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
CLIENT = "b7ad6b7169203331"
VLLM = "llm_request"
SERVICES = ("quantile-router", "quantile-variant", "vllm")


def of_trace(spans: list[Span], trace: str) -> dict[str, Span]:
    """The spans of one trace, by who made them; a trace has one of each."""
    mine = [span for span in spans if span.trace == trace]
    assert len({span.service for span in mine}) == len(mine)
    return {span.service: span for span in mine}


@pytest.mark.parametrize(("variant", "stream"), [("gptq", True), ("bf16", False)])
def test_a_trace_goes_from_the_client_through_router_and_variant_to_vllm(
    serve, collector, variant, stream
):
    trace, request_id = f"{1 + stream:032x}", f"traced-{variant}"
    body = chat(f"{MODEL}@{variant}", 12, stream=stream, ignore_eos=True)
    body["messages"][0]["content"] = "What is the secret capital of France?"
    if stream:
        body["stream_options"] = {"include_usage": True}
    headers = {"traceparent": f"00-{trace}-{CLIENT}-01", "x-request-id": request_id}
    url = f"{serve.base_url}{CHAT}"
    assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 200
    spans = collector.wait_for(lambda spans: of_trace(spans, trace).keys() == set(SERVICES))
    found = of_trace(spans, trace)
    routed, served, generated = (found[each] for each in SERVICES)
    assert (routed.parent, served.parent, generated.parent) == (CLIENT, routed.id, served.id)
    assert descends(generated, served, spans) and descends(generated, routed, spans)
    assert not descends(served, generated, spans)
    assert generated.name == VLLM
    (replica,) = replica_pids(f"{variant}:VariantServer", serve.pid)
    assert generated.resource["vllm.process_id"] == str(replica)
    told = generated.attributes
    assert request_id in told["gen_ai.request.id"]
    assert told["gen_ai.usage.completion_tokens"] == 12
    assert routed.attributes["gen_ai.usage.output_tokens"] == 12
    assert routed.attributes["gen_ai.usage.input_tokens"] == told["gen_ai.usage.prompt_tokens"] > 5
    assert 0 < told["gen_ai.latency.time_to_first_token"] <= told["gen_ai.latency.e2e"]
    assert served.attributes["quantile.engine"].startswith("vllm ")
    assert "secret" not in repr(spans)


def test_what_no_client_asks_to_trace_is_not_traced_by_anyone(serve, collector):
    """The sampler's word goes with the context to the variant, and on to vLLM."""
    url = f"{serve.base_url}{CHAT}"
    body, number = chat(f"{MODEL}@gptq", 4), 7
    httpx.post(url, json=body, headers={"x-request-id": "untraced-1"}, timeout=60)
    no = {"traceparent": f"00-{number:032x}-{CLIENT}-00", "x-request-id": "untraced-2"}
    httpx.post(url, json=body, headers=no, timeout=60)
    last = f"{number + 1:032x}"
    yes = {"traceparent": f"00-{last}-{CLIENT}-01"}
    httpx.post(url, json=body, headers=yes, timeout=60)
    spans = collector.wait_for(lambda spans: "vllm" in of_trace(spans, last))
    assert "untraced" not in repr(spans)
    assert not of_trace(spans, no["traceparent"].split("-")[1])
