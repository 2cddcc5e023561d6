"""The page is complete, self-contained, escaped, and identical for identical input."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.evaluation import (
    Evaluation,
    LostCellCount,
    QuarantineCount,
    ReportInput,
    SampleItem,
    SampleUser,
    evaluate,
    quarantine_counts,
    render_report,
)
from macrec_pipeline.evaluation.new_items import NewItems
from macrec_pipeline.evaluation.protocol import DeterminedTargets

EVIL = "<script>alert('1')</script> & \"quotes\" \N{GUITAR}"


class _Page(HTMLParser):
    """Collect the tags, attributes and texts of a page, and check that tags close in order."""

    _VOID = frozenset({"meta", "img", "br", "line", "circle", "polyline", "polygon", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def report(evaluation: Evaluation, tmp_path: Path) -> ReportInput:
    image_file = tmp_path / "a.jpg"
    Image.new("RGB", (90, 140), "teal").save(image_file)
    with_image, plain, evil = (
        SampleItem("1", "With an image", image_file),
        SampleItem("2", "Blue Electric Guitar", None),
        SampleItem("3", EVIL, tmp_path / "missing.jpg"),
    )
    users = tuple(
        SampleUser(
            f"user-{number}",
            (with_image, evil),
            17,
            plain,
            (with_image, evil, plain) if number == 0 else (with_image,),
        )
        for number in range(12)
    )
    return ReportInput(
        dataset="demo",
        title="Demo shop",
        date="2026-02-03",
        preset="demo",
        seed=7,
        git_commit="0123456789abcdef0123456789abcdef01234567",
        num_users=1500,
        num_items=30,
        num_interactions=12345,
        evaluation=evaluation,
        collision_rate={"text": {"before": 0.0741, "after": 0.0}, "image": {"before": 0.0333, "after": 0.0}},
        code_usage={"text": np.arange(24).reshape(3, 8), "image": np.ones((3, 8), dtype=np.int64)},
        run_ids={"Dagster run": "run-1", "MLflow run": "run-2"},
        quantizer_log=[
            {"epoch": 1.0, "loss": 2.0, "text_collision_rate": 0.5, "image_collision_rate": 0.25},
            {"epoch": 2.0, "loss": 1.5, "text_collision_rate": 0.125, "image_collision_rate": 0.0625},
        ],
        recommender_log=[{"epoch": 1.0, "train_loss": 3.25, "validation_loss": 3.5}],
        quarantine=[QuarantineCount("interactions", "k_core", 713)],
        lost_cells=[LostCellCount("shop/orders.csv", "stars", "unreadable", 6123)],
        sample_users=users,
        items_without={"text": 0, "image": 4},
    )


def test_the_same_input_gives_the_same_page(report: ReportInput) -> None:
    """Rendering twice gives identical bytes."""
    assert render_report(report) == render_report(report)


def test_the_page_is_well_formed_and_loads_nothing(report: ReportInput) -> None:
    """Tags close in order; there are no scripts, no links and no addresses other than data URIs."""
    html = render_report(report)
    page = _Page(html)
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert addresses
    assert all(value is not None and value.startswith("data:image/jpeg;base64,") for value in addresses)
    assert not re.search(r"https?://|url\(|@import", html)


def test_the_page_shows_what_was_measured(report: ReportInput, evaluation: Evaluation) -> None:
    """Provenance, every system's HR@10, collision rates, quarantine and users are on the page."""
    texts = " ".join(_Page(render_report(report)).texts)
    expected = [
        "Demo shop",
        "1,500",
        "12,345",
        "2026-02-03",
        "0123456789ab",
        "run-1",
        "run-2",
        "7.41%",
        "k_core",
        "713",
    ]
    expected += ["shop/orders.csv", "stars", "unreadable", "6,123"]
    expected += ["user-11", "Popularity", "Item-kNN", "SASRec", "MACRec, text route", "image 4 of 30"]
    expected += [f"{values['hr_10']:.4f}" for values in evaluation.systems.values()]
    expected += [f"{values['mrr']:.4f}" for values in evaluation.systems_excluding_seen.values()]
    assert [text for text in expected if text not in texts] == []


def test_the_page_shows_slices_and_new_items(report: ReportInput, evaluation: Evaluation) -> None:
    """Each slice is a row with the metrics of the fused system and every baseline, and new items have a table."""
    html = render_report(report)
    table = html[html.index('aria-label="Slices"') :].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*><b>([\d.]+)</b>", row) for row in table.split("</tr>") if "<b>" in row]
    assert rows == [
        [f"{getattr(metrics, name):.4f}" for name in ("hr_10", "ndcg_10") for metrics in result.systems.values()]
        for result in evaluation.slices
    ]
    new = dataclasses.replace(evaluation.new_items, num_items=7, num_catalogue_items=28, num_target_users=1)
    texts = " ".join(_Page(render_report(_with_new_items(report, new))).texts)
    assert "7 of the 28 items in the catalogue (25.0%) are new" in texts
    assert (
        "For 1 of the 40 test users (2.5%), a new item came next. MACRec recommends none of the new items to any"
        in texts
    )


def test_a_catalogue_without_new_items_has_no_table_of_them(report: ReportInput, evaluation: Evaluation) -> None:
    """If every item was trained on, the page says so in one sentence."""
    none = dataclasses.replace(evaluation.new_items, num_items=0)
    html = render_report(_with_new_items(report, none))
    assert "The catalogue has no new items" in html
    assert 'aria-label="New items"' not in html


def _with_new_items(report: ReportInput, new_items: NewItems) -> ReportInput:
    return dataclasses.replace(report, evaluation=dataclasses.replace(report.evaluation, new_items=new_items))


def test_the_page_says_for_how_many_users_the_data_do_not_determine_the_target(
    report: ReportInput, evaluation: Evaluation
) -> None:
    """Of 40 users, 10 have a determined target, 40 have one, or none has; the page has their metrics where it can."""

    def page(determined: DeterminedTargets) -> tuple[str, str]:
        html = render_report(
            dataclasses.replace(report, evaluation=dataclasses.replace(evaluation, determined=determined))
        )
        return html, " ".join(" ".join(_Page(html).texts).split())

    label = 'aria-label="Metrics of users with a determined target'
    html, texts = page(dataclasses.replace(evaluation.determined, num_test_users=10))
    assert "For 30 of the 40 test users (75.0%), the data do not determine the test target." in texts
    both = [values.systems["macrec"]["ndcg_10"] for values in (evaluation, evaluation.determined)]
    assert "is {:.4f} for all test users and {:.4f} for the 10 whose target".format(*both) in texts
    assert "The 10 test users whose target the data determine." in texts
    assert html.count(label) == 2
    html, texts = page(evaluation.determined)
    assert "for every test user, the target is the only interaction at its time" in texts
    assert label not in html
    html, texts = page(DeterminedTargets(0, {}, {}))
    assert "For 40 of the 40 test users (100.0%)" in texts
    assert "No test user is left without such a choice" in texts
    assert label not in html


def test_a_report_without_sasrec_does_not_mention_it(
    report: ReportInput, histories: pl.DataFrame, predictions: pl.DataFrame
) -> None:
    """If the predictions have no rows of SASRec, neither the tables nor the texts mention it."""
    config = EvaluationConfig(bootstrap_samples=10)
    others = predictions.filter(pl.col("system") != "sasrec")
    without = evaluate(histories, others, num_items=30, config=config, seed=3)
    expected = "trained for 2 epochs; epoch 1 was used because it has the best validation NDCG@10, 0.1250"
    assert expected in render_report(report)
    assert "SASRec" not in render_report(dataclasses.replace(report, evaluation=without))


def test_the_best_value_of_each_column_is_marked(report: ReportInput) -> None:
    """In each column of both tables of metrics, exactly the systems with the highest value are marked."""
    html = render_report(report)
    for label in ("Metrics, seen items allowed", "Metrics, seen items excluded"):
        table = html[html.index(f'aria-label="{label}"') :].split("</table>")[0]
        rows = [
            re.findall(r'<td( class="best")?><b>([\d.]+)</b>', row) for row in table.split("</tr>")[1:] if "<td" in row
        ]
        assert len(rows) == 6
        for column in zip(*rows, strict=True):
            highest = max(value for _, value in column)
            assert [bool(mark) for mark, _ in column] == [value == highest for _, value in column]


def test_texts_are_escaped_everywhere(report: ReportInput) -> None:
    """A title, a data set name or a reason that looks like markup is shown as text."""
    odd = dataclasses.replace(
        report,
        title=EVIL,
        dataset=EVIL,
        preset=EVIL,
        run_ids={EVIL: EVIL},
        quarantine=[QuarantineCount(EVIL, EVIL, 1)],
        lost_cells=[LostCellCount(EVIL, EVIL, EVIL, 1)],
        items_without={EVIL: 1},
    )
    page = _Page(render_report(odd))
    assert "script" not in page.tags
    assert sum(EVIL in text for text in page.texts) >= 8


def test_hits_and_missing_images_are_shown(report: ReportInput) -> None:
    """The only user whose list contains the target has a hit at its rank; items without an image show initials."""
    html = render_report(report)
    assert html.count('<span class="badge">hit</span>') == 1
    assert html.count('<span class="badge">next</span>') == 12
    assert "next item found at rank 3" in html
    assert html.count("not among the first 1") == 11
    assert ">BE</span>" in html
    assert html.count("<img ") == 12 * 2


def test_a_run_without_training_has_a_page(report: ReportInput) -> None:
    """Without logs, quarantined rows and sample users, the page says so."""
    bare = dataclasses.replace(
        report, code_usage={}, quantizer_log=(), recommender_log=(), quarantine=(), sample_users=(), items_without={}
    )
    texts = " ".join(_Page(render_report(bare)).texts)
    assert "did not train a quantizer" in texts
    assert "every row was used" in texts
    assert "test users, the item that came next" in texts


def test_images_stay_within_two_megabytes(report: ReportInput, tmp_path: Path) -> None:
    """Twelve users with twenty-one large images each give a page below 2.5 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    items = []
    for number in range(21):
        Image.fromarray(np.roll(noise, number * 7, axis=1)).save(tmp_path / f"{number}.png")
        items.append(SampleItem(str(number), f"Item {number}", tmp_path / f"{number}.png"))
    user = SampleUser("u", tuple(items[:10]), 10, items[10], tuple(items[11:]))
    html = render_report(dataclasses.replace(report, sample_users=(user,) * 12))
    assert html.count("<img ") == 12 * 21
    assert len(html) < 2_500_000


def test_quarantine_is_counted_by_table_and_reason() -> None:
    """Tables are ordered by name, and their reasons by the number of rows, then by name."""
    rows = [("items", "x"), ("interactions", "b"), ("interactions", "a"), ("interactions", "c"), ("interactions", "c")]
    found = quarantine_counts(pl.DataFrame(rows, schema=["table", "reason"], orient="row"))
    assert [(count.table, count.reason, count.num_rows) for count in found] == [
        ("interactions", "c", 2),
        ("interactions", "a", 1),
        ("interactions", "b", 1),
        ("items", "x", 1),
    ]
