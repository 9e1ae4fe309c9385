"""Campaign files: their schema and how they are read. Pure, but for reading the file."""

from loadtests.campaign.campaign import Campaign, load_campaign, parse_campaign
from loadtests.campaign.limits import Slo, ValidityLimits
from loadtests.campaign.stages import LoadStage, Search
from loadtests.campaign.target import Metrics, Target
from loadtests.campaign.workload import (
    CorpusPrompts,
    JsonlPrompts,
    SyntheticPrompts,
    TracePrompts,
    Workload,
)

__all__ = [
    "Campaign",
    "CorpusPrompts",
    "JsonlPrompts",
    "LoadStage",
    "Metrics",
    "Search",
    "Slo",
    "SyntheticPrompts",
    "Target",
    "TracePrompts",
    "ValidityLimits",
    "Workload",
    "load_campaign",
    "parse_campaign",
]
