"""The page of benchmarks names the day and the machine of each figure."""

from bench.measure import Claim
from bench.report import CHART, PAGE, Run, chart_of, load, page_of


def test_page_and_chart_of_benchmarks_show_the_figures_that_are_stored() -> None:
    assert (PAGE.read_text("utf-8"), CHART.read_text("utf-8")) == (page_of(load()), chart_of(load()))


def test_figures_of_another_day_keep_it_when_some_are_measured_again() -> None:
    first = Run(["Monday", "2 processors"], [Claim("pages", 10, "/s")])
    found = {"list_page": first, "batch": first, "team": Run(["Friday", "4 processors"], [Claim("rows", 20, "/s")])}
    page = page_of(found)
    assert "\n- Monday\n- 2 processors\n- `team`: Friday; 4 processors\n" in page
    assert [page.count(f"[{name}](") for name in found] == [1, 1, 1]
