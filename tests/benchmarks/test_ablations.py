"""The ablation command caches results, reads test targets only at the end, and reports errors in one line."""

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import trained
from benchmarks.accuracy.ablations import Study, main
from benchmarks.accuracy.variants import SYSTEMS, VARIANTS
from macrec_pipeline.datasets import load_dataset
from tests.benchmarks.small_study import NUM_USERS, run_small, small_study


class Killed(BaseException):
    """Stands for a killed process, since no code catches it."""


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def _count_calls(monkeypatch: pytest.MonkeyPatch, name: str, *, killed_at: int = 0) -> list[int]:
    """Count the calls of a function of `trained`; call number `killed_at` raises `Killed`."""
    calls: list[int] = []
    real: Any = getattr(trained, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == killed_at:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(trained, name, counting)
    return calls


def test_a_killed_study_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished systems are not trained again, and the document equals that of an uninterrupted study."""
    expected = run_small(tmp_path / "uninterrupted")
    with monkeypatch.context() as patch:
        _count_calls(patch, "fit_recommender", killed_at=2)
        with pytest.raises(Killed):
            run_small(tmp_path / "killed")
    calls = _count_calls(monkeypatch, "fit_recommender")
    assert run_small(tmp_path / "killed") == expected
    assert calls == [1]
    assert run_small(tmp_path / "killed") == expected
    assert calls == [1]


def test_variants_with_one_quantizer_share_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants of the recommender are compared on the same IDs, which are trained once per seed."""
    calls = _count_calls(monkeypatch, "fit_quantizer")
    run_small(tmp_path, systems=("full", "no_implicit"))
    assert len(calls) == 1
    run_small(tmp_path, systems=("full",), seeds=(1, 2))
    assert len(calls) == 2


def test_changed_settings_are_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result of other settings is not taken from the work folder."""
    calls = _count_calls(monkeypatch, "fit_recommender")
    run_small(tmp_path, systems=("full",))
    run_small(tmp_path, systems=("full",), overrides=(*small_study().overrides, "recommender.learning_rate=0.5"))
    assert len(calls) == 2


def test_validation_only_never_reads_the_test_item(tmp_path: Path) -> None:
    """Other test items change nothing in a validation study, but do change the results of a test study."""
    assert run_small(tmp_path / "a", validation_only=True) == run_small(
        tmp_path / "b", validation_only=True, poisoned=True
    )
    clean, poisoned = run_small(tmp_path / "a"), run_small(tmp_path / "b", poisoned=True)
    assert clean["systems"]["item_knn"]["test"] != poisoned["systems"]["item_knn"]["test"]
    assert clean["systems"]["item_knn"]["validation"] == poisoned["systems"]["item_knn"]["validation"]


def test_nothing_is_trained_on_the_test_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study with other test items reuses every training of the first study."""
    calls = _count_calls(monkeypatch, "fit_recommender")
    run_small(tmp_path)
    run_small(tmp_path, poisoned=True)
    assert len(calls) == 2


def test_a_validation_study_has_no_test_results(tmp_path: Path) -> None:
    """A validation study has no test metrics for runs, means or comparisons."""
    document = run_small(tmp_path, validation_only=True)
    assert document["target"] == "validation"
    assert all(set(measured) == {"validation"} for measured in document["systems"].values())
    assert all("test" not in run for run in document["runs"])
    assert {row["target"] for row in document["comparisons"]} == {"validation"}


def test_runs_and_systems_of_a_document(tmp_path: Path) -> None:
    """Random systems have a run per seed, deterministic ones have one, and the full method has every route."""
    document = run_small(tmp_path, seeds=(1, 2))
    assert [(run["system"], run["seed"]) for run in document["runs"]] == [
        ("full", 1),
        ("full", 2),
        ("no_implicit", 1),
        ("no_implicit", 2),
        ("sasrec", 1),
        ("sasrec", 2),
        ("item_knn", None),
        ("popularity", None),
    ]
    assert {"full/fused", "full/text", "full/image", "no_implicit/fused", "sasrec"} <= set(document["systems"])
    assert document["num_users"] == NUM_USERS
    assert all(
        0 <= metric["mean"] <= 1 for metric in document["systems"]["full/fused"]["test"]["seen_allowed"].values()
    )


def test_a_document_contains_no_folder_and_no_host_name(tmp_path: Path) -> None:
    """The results file can be published unchanged."""
    text = json.dumps(run_small(tmp_path, systems=("popularity",)))
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert platform.node() not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "There is no data set 'nowhere'"),
        (["demo", "--variants", "fuller"], "Unknown variants: fuller. Choose from full, no_layer_contrast"),
        (["demo", "--variants", "full", "--seeds", "1", "1"], "without repeats"),
        (["demo", "--variants", "full", "--set", "recommender.width=3"], "full: Unknown setting `recommender.width`."),
        (["movielens-100k", "--variants", "full", "--data", "/nowhere"], "Pass the data folder with --data."),
        (["amazon-instruments", "--variants", "full"], "instruments.py, which is for given IDs"),
    ],
)
def test_errors_are_reported_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command writes one line to standard error, and exits with status 2."""
    with pytest.raises(SystemExit) as exit_info:
        main([*words, "--work", str(tmp_path), "--out", str(tmp_path)])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_variants_are_distinct() -> None:
    """No two variants have the same overrides."""
    assert SYSTEMS[: len(VARIANTS)] == tuple(VARIANTS)
    assert len(set(VARIANTS.values())) == len(VARIANTS)


@pytest.mark.parametrize(("variant", "share"), [("full", 1.0), ("no_explicit", 0.5), ("text_only", 0.25)])
def test_variants_with_fewer_tasks_have_as_many_steps(variant: str, share: float) -> None:
    """A step has the same number of targets per task in every variant, so no variant benefits from more steps."""
    study = small_study(systems=("full", variant) if variant != "full" else ("full",))
    full, of_variant = (study.config(system, 1).recommender.batch_size for system in ("full", variant))
    assert of_variant == share * full


def test_extensions_of_a_data_set_are_off_unless_a_variant_turns_them_on() -> None:
    """The file of MovieLens anchors its IDs and has a third route; the full method of a study does not."""
    study = Study("movielens-100k")
    assert load_dataset("movielens-100k").config().quantizer.collaborative_input_weight > 0
    full, anchored, routes = (study.config(name, 1) for name in ("full", "anchored", "three_routes"))
    assert (full.quantizer.collaborative_input_weight, full.decoding.fusion) == (0, "published")
    assert anchored.quantizer.collaborative_input_weight > 0
    assert not anchored.decoding.collaborative_route
    assert routes.decoding.collaborative_route
