"""What the target said of its variants: engine, versions, kernels, flags, device."""

from loadtests.records.manifest import Manifest
from loadtests.report.tables import Table, cells

Facts = dict[str, dict[str, str]]
"""Name of the fact -> variant -> text."""


def facts_of(manifest: Manifest) -> Facts:
    """Every fact of every variant, `replicas` first; `-` where a variant does not say."""
    variants = manifest.variants
    names = dict.fromkeys(name for of in variants.values() for name in of.facts)
    found = {
        "replicas": {
            v: "-" if of.replicas is None else str(of.replicas) for v, of in variants.items()
        }
    }
    found |= {name: {v: of.facts.get(name, "-") for v, of in variants.items()} for name in names}
    return found if variants else {}


def facts_table(facts: Facts) -> Table:
    """One row per fact, one column per variant: there are many facts and few variants."""
    variants = next(iter(facts.values()), {})
    rows = tuple(cells(name, *of.values()) for name, of in facts.items())
    return Table("What the target said of its variants", ("fact", *variants), rows)


def split_facts(facts: Facts) -> tuple[Facts, dict[str, str]]:
    """Those in which the variants differ, and the others with the text that all share."""
    shared = {
        name: next(iter(of.values())) for name, of in facts.items() if len(set(of.values())) == 1
    }
    return {name: of for name, of in facts.items() if name not in shared}, shared
