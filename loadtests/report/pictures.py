"""All figures of a report, in the order in which it shows them."""

from loadtests.report.figures.comparison import draw_comparison
from loadtests.report.figures.ecdf import draw_ecdf
from loadtests.report.figures.errors import draw_errors
from loadtests.report.figures.knee import draw_knee
from loadtests.report.figures.load import draw_load
from loadtests.report.figures.percentiles import draw_percentiles
from loadtests.report.figures.scraped import draw_scraped
from loadtests.report.figures.style import Picture, lay_out
from loadtests.report.figures.timeline import draw_timeline
from loadtests.report.result import CampaignResult, RawRun
from loadtests.report.samples import Samples


def draw_pictures(result: CampaignResult, run: RawRun, samples: Samples) -> tuple[Picture, ...]:
    """The figures for which the run has something to show. To be called within `style()`."""
    drawn = (
        draw_comparison(result),
        draw_knee(result),
        draw_percentiles(result),
        draw_ecdf(result, samples),
        draw_load(result),
        draw_timeline(result, samples, run.cells, run.runs),
        draw_errors(result),
        draw_scraped(result, run.samples, run.cells),
    )
    pictures = tuple(each for each in drawn if each is not None)
    for each in pictures:
        lay_out(each.figure)
    return pictures
