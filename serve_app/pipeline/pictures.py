"""The report's figures: the last campaign's, and the recommendation's, drawn from their files."""

from loadtests.report.figures.comparison import draw_comparison
from loadtests.report.figures.percentiles import draw_percentiles
from loadtests.report.figures.style import Picture, lay_out
from loadtests.report.result import read_result
from serve_app.pipeline.recommendation import recommendation
from serve_app.pipeline.report import PipelineReport, recommendation_files
from serve_app.recommend import pictures as recommended


def draw_pictures(report: PipelineReport) -> tuple[Picture, ...]:
    """Those for which there is evidence. To be called within `style()`."""
    drawn: list[Picture | None] = []
    if report.last_load is not None:
        result = read_result(report.last_load)
        drawn += [draw_comparison(result), draw_percentiles(result)]
    made = [each for each in drawn if each is not None]
    for each in made:
        lay_out(each.figure)
    files = recommendation_files(report)
    if files is not None:
        found = recommendation(files.asked, files.run, files.quality, files.config)
        made += recommended.draw_pictures(found)
    return tuple(made)
