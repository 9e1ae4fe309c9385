"""From a run's manifest to its cells and the bodies of its requests."""

from loadtests.analyse.search import SearchCells
from loadtests.campaign import Campaign
from loadtests.drive.conductor import Body
from loadtests.plan.cells import Planner
from loadtests.plan.prompts import PromptBook, chat_body, load_prompts
from loadtests.plan.request import PlannedRequest
from loadtests.plan.words import TOKENS_PER_WORD
from loadtests.records.manifest import Manifest
from loadtests.source import CellSource, plan_cells


def plan_of(manifest: Manifest, campaign: Campaign) -> tuple[CellSource, Body]:
    """The cells of the run, and what makes a body. Raises ConfigError if it cannot be planned."""
    prompts = load_prompts(campaign.workload.prompts)
    book = PromptBook(prompts, manifest.tokens_per_word or TOKENS_PER_WORD)

    def body(request: PlannedRequest, variant: str) -> bytes:
        model = f"{campaign.target.model}@{variant}"
        messages = book.messages(request)
        return chat_body(campaign.workload, model, messages, request.max_tokens)

    planner = Planner(campaign, len(prompts))
    return (plan_cells(planner) if campaign.search is None else SearchCells(planner)), body
