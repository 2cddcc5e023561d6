"""The speed benchmarks work at a tiny size, and both sides of each find the same. No test looks at a clock."""

import json
from pathlib import Path

import pytest

from benchmarks.speed import rows
from benchmarks.speed.case import Case
from benchmarks.speed.machine import Machine, forget, machine_name
from benchmarks.speed.measuring import measure, row_of
from benchmarks.speed.plots import with_table
from benchmarks.speed.run import line, table

TINY = list(rows.cases("tiny"))
MACHINE = Machine("a processor, 2 cores, 8 GiB", gigaflops=100.0, gigabytes_a_second=10.0)
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
def test_ours_finds_what_the_baseline_finds(case: Case, tmp_path: Path) -> None:
    """The comparison is of the same work: both results agree, also when ours runs a second time."""
    case.prepare(tmp_path)
    ours = case.ours(tmp_path)
    ours()
    case.same(ours(), case.baseline(tmp_path)())


def test_names_are_distinct_and_found() -> None:
    """A worker is told a case by module and name."""
    everything = [pair for kind in ("cases", "growing", "tiny") for pair in rows.cases(kind)]
    names = [case.name for module, case in everything if module != "imports"]
    assert len(set(names)) == len(names)
    for module, case in everything:
        assert rows.find(module, case.name).name == case.name


def test_a_case_is_measured_in_processes_of_its_own(tmp_path: Path) -> None:
    """Prepared, warmed up, run in turn; the row has every field and is plain JSON."""
    module, case = next((module, case) for module, case in TINY if module == "embedding_table")
    row = measure(module, case, MACHINE, commit="abc", work=tmp_path)
    assert list(row)[: len(KEYS)] == KEYS
    assert json.loads(json.dumps(row)) == row
    assert row["ours"] > 0
    assert row["baseline"] > 0
    assert row["peak_rss_mb"] > 10
    assert list(tmp_path.iterdir()) == []


def _case(**changes: object) -> Case:
    def nothing(*_: object) -> None:
        return None

    fields = {"name": "n", "size": 1, "size_of": "rows", "prepare": nothing, "ours": nothing, "baseline": nothing}
    return Case(**(fields | {"same": nothing} | changes))  # type: ignore[arg-type]


def _runs(*seconds: float, peak: float = 50.0) -> list[dict[str, float]]:
    return [{"seconds": value, "cpu_seconds": 2 * value, "peak_rss_mb": peak} for value in seconds]


def test_a_row_by_hand() -> None:
    """Medians; the ratio is the median of the pairs', not the ratio of the medians; the limit over the time."""
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
    """Two seconds, three times as fast as the baseline, 50 MB."""
    assert row_of(_case(**changes), _runs(2.0), _runs(6.0), MACHINE, commit="c")["met"] is met


def test_a_rate_is_of_the_bytes_that_one_run_moves() -> None:
    """10 MB in two seconds are 5 MB/s, and without a baseline there is nothing to compare with."""
    row = row_of(_case(unit="MB/s", megabytes=10.0, target=1.0, by_ratio=True), _runs(2.0), [], MACHINE, commit="c")
    assert (row["ours"], row["baseline"], row["ratio"], row["met"]) == (5.0, None, None, None)


def test_the_table_is_markdown() -> None:
    """One line a row, empty where there is no figure."""
    row = row_of(_case(), _runs(2.0), [], MACHINE, commit="c")
    assert line(row) == "| n | s | 2.0 |  |  |  |  |  | 50 | 0.0 |"
    assert table([row]).count("\n") == 2


def test_below_the_table_stands_why_a_target_is_not_met() -> None:
    """And nothing of a target that is."""
    slow, fast = (
        row_of(_case(name=name, target=2.0, why_not="the disk"), _runs(seconds), [], MACHINE, commit="c")
        for name, seconds in (("slow", 3.0), ("fast", 1.0))
    )
    assert table([slow, fast]).endswith("\n\n- slow, not met: the disk")
    assert table([fast]).count("\n") == 2


def test_every_target_says_why_it_may_not_be_met() -> None:
    """But for those that every machine so far has met."""
    asking = [(module, case) for module, case in rows.cases("cases") if case.target or case.peak_limit_mb]
    assert {module for module, case in asking if not case.why_not} == {
        "decoding",  # its memory
        "assignment",
        "evaluation",
        "pictures",
        "imports",
    }


def test_runs_of_their_own_process_are_as_many(tmp_path: Path) -> None:
    """Each is prepared for anew, the memory of one says nothing of another's."""
    module, case = next((module, case) for module, case in TINY if module == "k_core")
    assert case.afresh
    row = measure(module, case, MACHINE, commit="abc", work=tmp_path)
    assert row["runs"] == case.repeats
    assert row["ours"] > 0


def test_a_machine_is_told_without_its_name(tmp_path: Path) -> None:
    """Processor, cores, memory; and forgetting a file loses none of it."""
    assert machine_name().endswith("GiB")
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    forget(path)
    assert path.read_bytes() == b"kept"


def test_the_table_is_put_between_its_marks_again_and_again() -> None:
    """An empty place is filled, a full one replaced, what stands around it stays."""
    row = row_of(_case(), _runs(2.0), [], MACHINE, commit="c") | {"load": 0.5}
    empty = "before\n<!-- table:speed -->\n<!-- /table -->\nafter"
    once = with_table(empty, [row])
    assert line(row) in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter")
    assert with_table(once, [row]) == once
