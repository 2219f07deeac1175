"""The page: well formed, whole, escaped, alone, and with the numbers of report.json. All numbers are made up."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest
from report_day import DAY, EVIL, synthetic_day

from kfp_components.report.charts import Bar, Series, bar_chart, line_chart
from kfp_components.report.collect import collect
from kfp_components.report.page import render, write_report
from kfp_components.report.wording import count, duration, gib, number, share, within

SECTIONS = ("data", "tokenizer", "pretrain", "evaluation", "reward", "align", "cost", "serving", "provenance")
DOCS = ("quality/docs/index.html", "quality/pathways/docs/index.html")  # beside the page in its folder


class Page(HTMLParser):
    """What a browser would see: text, ids, references; an element that is closed in the wrong place raises."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open, self.ids, self.references = "", [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [v for k, v in attributes if k == "id"]
        self.references += [v for k, v in attributes if k in ("src", "href", "srcset", "xlink:href", "action", "data")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.text += " " if tag in ("td", "th", "dt", "dd", "p", "h1", "h2", "text") else ""
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    return collect(synthetic_day(tmp_path_factory.mktemp("day")), DAY)


def test_every_section_is_there_and_described(report):
    page = Page(render(report))
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert "Missing:" not in page.text and "Released and promoted to production" in page.text
    assert [tag for tag, _ in page.tags].count("table") == [tag for tag, _ in page.tags].count("caption") >= 9
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert len(drawings) == 10 and all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in drawings)


def test_the_page_shows_the_numbers_of_report_json(report, tmp_path):
    write_report(report, tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == report
    text = " ".join(Page((tmp_path / "report.html").read_text()).text.split())
    for values in saved["evaluation"]["rows"]:
        for key, value in values.items():
            for one in value if isinstance(value, list) else [value]:
                assert key == "name" or number(one) in text, (values["name"], key)
    for step in saved["steps"]:
        assert duration(step["seconds"]) in text and gib(step["peak_mib"]) in text and step["digest"] in text
    for name, values in saved["reward"]["objectives"].items():
        assert number(values["auc"], 3) in text and count(values["positives"]) in text, name
        assert number(values["ece"]) in text and number(values["predicted_over_observed"], 2) in text, name
        for score in (values, saved["reward"]["p_score"][name], saved["reward"]["hand_sum"][name]):
            assert within(score, "auc") in text and within(score, "gauc") in text, name
    for rule, rows, fate in (
        ("rows read", "112,000", ""),
        ("duplicates", "412", "dropped"),
        ("too late", "57", "set aside"),
        ("play time negative", "9", "kept"),
        ("items.author missing", "3", "kept"),
    ):
        assert f"{rule} {rows} {fate}" in text
    assert "impressions 2024-03-07 play_time_ms play times are believable at most 86400000, at least 0" in text
    assert f"0.2 % of the rows 33 surface {EVIL}, user id 7" in text and "it is never null critical 2" in text
    for key in ("reward_before", "reward_after", "recall_probe_before", "recall_probe_after"):
        assert number(saved["align"][key]) in text
    for value in (*saved["tokenizer"]["utilization"], saved["tokenizer"]["collision_rate_before"]):
        assert share(value) in text
    release = saved["release"]
    for value in (release["release_id"], release["code_commit"], *release["environment"].values(), "seed 11"):
        assert value in text
    assert "17.5 % above the better floor 0.1691" in text and "of which" not in text


def test_a_day_without_new_items_has_no_reconstruction_loss_and_says_so(report):
    measured = number(report["tokenizer"]["reconstruction_loss"], 3)
    name = "reconstruction loss of the items named today (0 perfect, 1 no better than the mean)"
    assert f"{name} {measured}" in " ".join(Page(render(report)).text.split())
    quiet = report | {"tokenizer": report["tokenizer"] | {"new_items": 0, "reconstruction_loss": None}}
    assert f"{name} no new item" in " ".join(Page(render(quiet)).text.split())


def test_the_code_tree_can_be_opened_down_to_items_and_gates_stand_beside_their_limits(report):
    page = Page(render(report))
    text = " ".join(page.text.split())
    branches = [tag for tag, a in page.tags if tag == "details" and a.get("class") == "branch"]
    assert len(branches) == 16 and sum(tag == "p" and a.get("class") == "branch" for tag, a in page.tags) == 8
    assert "77 1 item · a single item" in text and "68 codes follow; the largest:" in text
    assert "utilization 0.969 at least 0.9 passed" in text and "churn – at most 0.9 not judged" in text
    assert "a tag 61.0 % 83.0 % 7.0 %" in text and "a viewer – – –" in text
    refit = report["tokenizer"] | {"refit": True, "refit_reason": "drift 1.62 passed 1.5", "churn": [0.1, 0.2, 0.3]}
    text = " ".join(Page(render(report | {"tokenizer": refit})).text.split())
    assert "fitted today (drift 1.62 passed 1.5)" in text and "another first code 10.0 %" in text
    assert "another prefix of 2 codes 20.0 %" in text and "another ID 30.0 %" in text


def test_text_of_users_is_escaped(report):
    html = render(report)
    assert "<script" not in html and "&lt;script&gt;alert(" in html
    assert Page(html).text.count(EVIL) == 1 + 1 + 10  # the failed check, the code tree, an item of each user
    stopped = report | {"align": None, "missing": {"align": EVIL}}
    assert "<script" not in render(stopped) and EVIL in Page(render(stopped)).text
    line = [Series(name=EVIL, steps=[1], values=[2])]
    bars = str(bar_chart(title=EVIL, x_label=EVIL, bars=[Bar(label=EVIL, value=1.0, text=EVIL)]))
    lines = str(line_chart(title=EVIL, x_label=EVIL, y_label=EVIL, series=line, show=str))
    assert "<script" not in bars + lines and [Page(x).text.count(EVIL) for x in (bars, lines)] == [4, 4]


def test_the_page_needs_nothing_from_elsewhere_and_is_small(report):
    html = render(report)
    assert set(Page(html).references) == {"data:,", *DOCS} | {f"#{s}" for s in SECTIONS}
    assert not re.search(r"https?:|@import|url\(|//[a-z]", html)
    assert len(html.encode()) < 200_000


def test_simulated_numbers_say_so_in_every_section_and_others_never(report):
    page = Page(render(report))
    chips = [a for tag, a in page.tags if tag == "span" and a.get("class") == "chip"]
    assert len(chips) == len(SECTIONS) and page.text.count("simulated logs") > 2 * len(SECTIONS)
    other = Page(render(report | {"simulated": False, "data_label": "logs of mine", "source": "mine"}))
    assert "imulated" not in other.text and other.text.count("logs of mine") > len(SECTIONS)


@pytest.mark.parametrize("section", ["data", "quality", "tokenizer", "pretrain", "reward", "align", "evaluation"])
def test_a_missing_section_says_why_and_a_missing_number_is_a_dash(report, section):
    page = Page(render(report | {section: None, "missing": {section: f"because of {section}"}}))
    assert f"Missing: because of {section}." in page.text
    assert "–" in Page(render(report | {section: {"other": 1}})).text


def test_a_report_without_release_or_serving_renders(report):
    page = Page(render(report | {"release": None, "serving": None, "missing": {"release": "no", "serving": "no"}}))
    assert page.text.count("Missing: no.") == 2


def test_a_write_that_fails_leaves_the_old_report_whole(report, tmp_path):
    write_report(report, tmp_path)
    old = [(tmp_path / name).read_bytes() for name in ("report.html", "report.json")]
    with pytest.raises(ValueError, match="JSON"):
        write_report(report | {"source": "other", "tokenizer": {"entropy": [math.nan]}}, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("report.html", "report.json")] == old
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json").mkdir()  # the rename into place fails
    with pytest.raises(OSError):
        write_report(report, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "100 %"), (0.99996, "over 99.9 %"), (0.9994, "99.9 %"), (0.0001, "under 0.1 %"), (0, "0 %"), (None, "–")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(value, shown):
    assert share(value) == shown


def test_labels_at_the_ends_of_lines_never_cover_each_other():
    lines = [Series(name=f"line {i}", steps=[1, 2], values=[1.0, 5 + i / 100]) for i in range(4)]
    drawn = line_chart(title="t", x_label="x", y_label="y", series=lines, show=str)
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*class="end', drawn))
    assert len(heights) == 4 and min(b - a for a, b in itertools.pairwise(heights)) >= 13.9
