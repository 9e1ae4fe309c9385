"""Text from outside stays text; figures follow the page's theme and clash with no other."""

import pytest

from loadtests.report.figures.style import INK, add_legend, colour_of, new_figure, style, to_svg
from loadtests.report.html import Html, join, tag


def test_text_is_escaped_and_markup_is_not():
    assert tag("td", "a < b & c", tag("b", "x")) == "<td>a &lt; b &amp; c<b>x</b></td>"
    assert tag("p", ["<i>", Html("<i>")]) == "<p>&lt;i&gt;<i></p>"
    assert join("<script>") == "&lt;script&gt;"


def test_attributes_are_escaped_named_and_left_out():
    quoted = tag("td", "x", title='" onclick="alert(1)', class_=None, data_x="1")
    assert quoted == '<td title="&quot; onclick=&quot;alert(1)" data-x="1">x</td>'
    assert tag("meta", name="viewport", http_equiv="a") == '<meta name="viewport" http-equiv="a">'


def test_joined_markup_is_markup_but_a_sum_with_text_is_text():
    assert isinstance(tag("b", "x"), Html)
    assert join(tag("b", "x") + "<i>") == "&lt;b&gt;x&lt;/b&gt;&lt;i&gt;"


def drawn(names):
    with style():
        figure = new_figure(2.0)
        axes = figure.subplots()
        axes.plot([1, 2], [1, 2], color=colour_of(0), marker="o")
        axes.set_title("x_1 $y$")
        add_legend(figure, names)
        return to_svg(figure)


@pytest.fixture(scope="module")
def svg():
    return drawn(["_a<b>", "c$d$e^"])


def test_a_figure_takes_its_colours_from_the_page(svg):
    assert INK not in svg and "var(--ink)" in svg
    assert colour_of(0) not in svg and "var(--v0)" in svg


def test_names_in_a_figure_are_neither_markup_nor_mathematics(svg):
    assert "a&lt;b&gt;" in svg and "c$d$e^" in svg and "x_1 $y$" in svg
    assert "<b>" not in svg


def test_a_figure_is_the_same_every_time_and_has_no_ids_to_clash(svg):
    assert svg == drawn(["_a<b>", "c$d$e^"])
    assert "figure_1" not in svg and "axes_1" not in svg
