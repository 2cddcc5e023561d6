"""The speed benchmarks work at a tiny size, and both sides of each agree. No test depends on the clock."""

import json
from pathlib import Path

import pytest

from benchmarks.speed import rows
from benchmarks.speed.case import Case
from benchmarks.speed.machine import Machine, drop_from_cache, machine_name
from benchmarks.speed.measuring import measure, row_of
from benchmarks.speed.plots import with_table
from benchmarks.speed.run import line, table

TINY = list(rows.cases("tiny"))
MACHINE = Machine("a processor, 2 cores, 8 GiB", gigaflops=100.0, gigabytes_per_second=10.0)
KEYS = [
    "name",
    "unit",
    "ours",
    "baseline",
    "ratio",
    "target",
    "met",
    "roofline_share",
    "peak_rss_mb",
    "machine",
    "commit",
]


@pytest.mark.parametrize("case", [case for _, case in TINY], ids=[case.name for _, case in TINY])
def test_pipeline_and_baseline_agree(case: Case, tmp_path: Path) -> None:
    """The pipeline and the baseline give the same results, also if the pipeline runs a second time."""
    case.prepare(tmp_path)
    pipeline = case.pipeline(tmp_path)
    pipeline()
    case.check_equal(pipeline(), case.baseline(tmp_path)())


def test_cases_have_distinct_names_and_are_found_by_them() -> None:
    """A worker process gets its case by module and name."""
    all_cases = [pair for kind in ("cases", "growing", "tiny") for pair in rows.cases(kind)]
    names = [case.name for module, case in all_cases if module != "imports"]
    assert len(set(names)) == len(names)
    for module, case in all_cases:
        assert rows.find(module, case.name).name == case.name


def test_a_case_is_measured_in_separate_processes(tmp_path: Path) -> None:
    """A case is prepared, warmed up and run in alternation; its row has every field and is plain JSON."""
    module, case = next((module, case) for module, case in TINY if module == "embedding_table")
    row = measure(module, case, MACHINE, commit="abc", work=tmp_path)
    assert list(row)[: len(KEYS)] == KEYS
    assert json.loads(json.dumps(row)) == row
    assert row["ours"] > 0
    assert row["baseline"] > 0
    assert row["peak_rss_mb"] > 10
    assert list(tmp_path.iterdir()) == []


def _case(**changes: object) -> Case:
    def do_nothing(*_: object) -> None:
        return None

    fields = {
        "name": "n",
        "size": 1,
        "size_of": "rows",
        "prepare": do_nothing,
        "pipeline": do_nothing,
        "baseline": do_nothing,
    }
    return Case(**(fields | {"check_equal": do_nothing} | changes))  # type: ignore[arg-type]


def _runs(*seconds: float, peak: float = 50.0) -> list[dict[str, float]]:
    return [{"seconds": value, "cpu_seconds": 2 * value, "peak_rss_mb": peak} for value in seconds]


def test_a_row_by_hand() -> None:
    """Times are medians, the ratio is the median over pairs, and the roofline share is the limit over the time."""
    case = _case(target=2.0, limit=lambda machine: 100 / machine.gigaflops, peak_limit_mb=60)
    row = row_of(case, _runs(1.0, 2.0, 4.0), _runs(8.0, 2.0, 12.0), MACHINE, commit="c")
    assert (row["ours"], row["baseline"], row["ratio"]) == (2.0, 8.0, 3.0)
    assert (row["roofline_share"], row["spread"], row["cpu_seconds"]) == (0.5, 1.5, 4.0)
    assert (row["target"], row["met"], row["peak_rss_mb"]) == ("at most 2 s, at most 60 MB", True, 50)


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({"target": 2.0}, True),
        ({"target": 1.9}, False),
        ({"target": 2.0, "peak_limit_mb": 49}, False),
        ({"target": 3.0, "by_ratio": True}, True),
        ({"target": 3.1, "by_ratio": True}, False),
        ({"peak_limit_mb": 50}, True),
        ({"peak_limit_mb": 49}, False),
        ({}, None),
    ],
)
def test_a_target_is_met_by_time_or_ratio_and_memory(changes: dict[str, object], met: bool | None) -> None:
    """The run takes two seconds and 50 MB, and is three times as fast as the baseline."""
    assert row_of(_case(**changes), _runs(2.0), _runs(6.0), MACHINE, commit="c")["met"] is met


def test_a_rate_is_computed_from_the_bytes_of_one_run() -> None:
    """10 MB in two seconds are 5 MB/s; without a baseline there is no ratio."""
    row = row_of(_case(unit="MB/s", megabytes=10.0, target=1.0, by_ratio=True), _runs(2.0), [], MACHINE, commit="c")
    assert (row["ours"], row["baseline"], row["ratio"], row["met"]) == (5.0, None, None, None)


def test_the_table_is_markdown() -> None:
    """There is one line per row, and missing values are empty."""
    row = row_of(_case(), _runs(2.0), [], MACHINE, commit="c")
    assert line(row) == "| n | s | 2.0 |  |  |  |  |  | 50 | 0.0 |"
    assert table([row]).count("\n") == 2


def test_the_table_is_followed_by_reasons_for_missed_targets() -> None:
    """Targets that are met need no reason."""
    slow, fast = (
        row_of(_case(name=name, target=2.0, why_not="the disk"), _runs(seconds), [], MACHINE, commit="c")
        for name, seconds in (("slow", 3.0), ("fast", 1.0))
    )
    assert table([slow, fast]).endswith("\n\n- slow, not met: the disk")
    assert table([fast]).count("\n") == 2


def test_targets_have_a_reason_in_case_they_are_missed() -> None:
    """The exceptions are targets that every machine has met so far."""
    with_target = [(module, case) for module, case in rows.cases("cases") if case.target or case.peak_limit_mb]
    assert {module for module, case in with_target if not case.why_not} == {
        "decoding",  # its memory
        "assignment",
        "evaluation",
        "image_decoding",
        "imports",
    }


def test_a_case_can_have_a_new_process_per_run(tmp_path: Path) -> None:
    """The number of runs stays the same, and no run's memory includes that of another."""
    module, case = next((module, case) for module, case in TINY if module == "k_core")
    assert case.new_process_per_run
    row = measure(module, case, MACHINE, commit="abc", work=tmp_path)
    assert row["runs"] == case.repeats
    assert row["ours"] > 0


def test_a_machine_is_described_without_its_host_name(tmp_path: Path) -> None:
    """The description has processor, cores and memory. Dropping a file from the cache does not lose it."""
    assert machine_name().endswith("GiB")
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    drop_from_cache(path)
    assert path.read_bytes() == b"kept"


def test_the_table_is_replaced_between_its_markers() -> None:
    """An empty section is filled, an existing table is replaced, and the text around it stays."""
    row = row_of(_case(), _runs(2.0), [], MACHINE, commit="c") | {"load": 0.5}
    empty = "before\n<!-- table:speed -->\n<!-- /table -->\nafter"
    once = with_table(empty, [row])
    assert line(row) in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter")
    assert with_table(once, [row]) == once
