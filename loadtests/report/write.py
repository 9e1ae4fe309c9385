"""A run's report: `report.json`, `report.html`, `report.md`, `summary.csv` and the figures."""

from pathlib import Path

from loadtests.records.manifest import RunFiles
from loadtests.report.document import encode, report_of
from loadtests.report.markdown import render_markdown
from loadtests.report.result import CampaignResult, read_run, result_of
from loadtests.report.samples import Samples
from loadtests.report.tidy import render_csv


def write_report(folder: Path) -> CampaignResult:
    """Derive the result from a run's folder and write every view of it beside the records.

    The same folder gives the same files. Raises ConfigError if the folder holds no run.
    """
    # matplotlib takes a second to import
    from loadtests.report.figures.style import save_png, style
    from loadtests.report.page import render_page
    from loadtests.report.pictures import draw_pictures

    run = read_run(folder)
    result = result_of(run)
    files, samples = RunFiles(folder), Samples(run)
    files.report_json.write_bytes(encode(report_of(result)))
    files.summary_csv.write_text(render_csv(result), encoding="utf-8")
    with style():
        pictures = draw_pictures(result, run, samples)
        written = [save_png(picture, folder) for picture in pictures]
        page = render_page(result, pictures, samples.failures())
    files.report_html.write_text(page, encoding="utf-8")
    files.report_md.write_text(render_markdown(result, written), encoding="utf-8")
    return result
