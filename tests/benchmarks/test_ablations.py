"""The ablation command: what it keeps, what it looks at, and what it says to who asks for the impossible."""

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
    """What nothing catches, as a kill."""


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def _counted(monkeypatch: pytest.MonkeyPatch, name: str, *, killed_at: int = 0) -> list[int]:
    """Count the calls of a function of `trained`; the `killed_at`-th one is killed."""
    calls: list[int] = []
    real: Any = getattr(trained, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == killed_at:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(trained, name, counting)
    return calls


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished is not trained again, and the document is that of a study that was not killed."""
    whole = run_small(tmp_path / "whole")
    with monkeypatch.context() as patch:
        _counted(patch, "fit_recommender", killed_at=2)
        with pytest.raises(Killed):
            run_small(tmp_path / "killed")
    calls = _counted(monkeypatch, "fit_recommender")
    assert run_small(tmp_path / "killed") == whole
    assert calls == [1]
    assert run_small(tmp_path / "killed") == whole
    assert calls == [1]


def test_variants_with_one_quantizer_share_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants of the recommender are compared on the same IDs, trained once; another seed has its own."""
    calls = _counted(monkeypatch, "fit_quantizer")
    run_small(tmp_path, systems=("full", "no_implicit"))
    assert len(calls) == 1
    run_small(tmp_path, systems=("full",), seeds=(1, 2))
    assert len(calls) == 2


def test_other_settings_are_other_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed setting trains anew instead of answering from the folder."""
    calls = _counted(monkeypatch, "fit_recommender")
    run_small(tmp_path, systems=("full",))
    run_small(tmp_path, systems=("full",), overrides=(*small_study().overrides, "recommender.learning_rate=0.5"))
    assert len(calls) == 2


def test_validation_only_never_looks_at_the_test_item(tmp_path: Path) -> None:
    """Other test items change no figure of a validation study, and do change the figures of a test."""
    assert run_small(tmp_path / "a", validation_only=True) == run_small(
        tmp_path / "b", validation_only=True, poisoned=True
    )
    clean, poisoned = run_small(tmp_path / "a"), run_small(tmp_path / "b", poisoned=True)
    assert clean["systems"]["item_knn"]["test"] != poisoned["systems"]["item_knn"]["test"]
    assert clean["systems"]["item_knn"]["validation"] == poisoned["systems"]["item_knn"]["validation"]


def test_nothing_is_trained_on_the_test_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study with other test items finds every training of the first one finished."""
    calls = _counted(monkeypatch, "fit_recommender")
    run_small(tmp_path)
    run_small(tmp_path, poisoned=True)
    assert len(calls) == 2


def test_a_validation_study_holds_no_test_figure(tmp_path: Path) -> None:
    """Neither the runs nor the means nor the comparisons say anything of test targets."""
    document = run_small(tmp_path, validation_only=True)
    assert document["target"] == "validation"
    assert all(set(measured) == {"validation"} for measured in document["systems"].values())
    assert all("test" not in run for run in document["runs"])
    assert {row["target"] for row in document["comparisons"]} == {"validation"}


def test_runs_and_rows(tmp_path: Path) -> None:
    """Who draws has a run a seed, who does not has one; the whole method is shown by every route."""
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


def test_a_document_names_no_folder_and_no_host(tmp_path: Path) -> None:
    """The results file can be published as it is."""
    text = json.dumps(run_small(tmp_path, systems=("popularity",)))
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert platform.node() not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "There is no data set 'nowhere'"),
        (["demo", "--variants", "fuller"], "There is no variant fuller. Use: full, no_layer_contrast"),
        (["demo", "--variants", "full", "--seeds", "1", "1"], "each once"),
        (["demo", "--variants", "full", "--set", "recommender.width=3"], "full: The settings are wrong."),
        (["movielens-100k", "--variants", "full", "--data", "/nowhere"], "Name the data folder with --data."),
        (["amazon-instruments", "--variants", "full"], "instruments.py is for given IDs"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error and exit status 2."""
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--work", str(tmp_path), "--out", str(tmp_path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_every_variant_changes_what_it_says() -> None:
    """Each variant but the whole method differs from it, and from every other one."""
    assert SYSTEMS[: len(VARIANTS)] == tuple(VARIANTS)
    assert len(set(VARIANTS.values())) == len(VARIANTS)


@pytest.mark.parametrize(("variant", "share"), [("full", 1.0), ("no_explicit", 0.5), ("text_only", 0.25)])
def test_fewer_tasks_have_as_many_steps(variant: str, share: float) -> None:
    """A step has as many targets of each task in every variant: none wins or loses by the number of its steps."""
    study = small_study(systems=("full", variant) if variant != "full" else ("full",))
    whole, own = (study.config(system, 1).recommender.batch_size for system in ("full", variant))
    assert own == share * whole


def test_what_a_data_set_turns_on_beyond_the_paper_is_asked_for_by_name() -> None:
    """MovieLens' own file anchors its IDs and has a third route; the whole method of the study does not."""
    study = Study("movielens-100k")
    assert load_dataset("movielens-100k").config().quantizer.collaborative_input_weight > 0
    full, anchored, routes = (study.config(name, 1) for name in ("full", "anchored", "three_routes"))
    assert (full.quantizer.collaborative_input_weight, full.decoding.fusion) == (0, "published")
    assert anchored.quantizer.collaborative_input_weight > 0
    assert not anchored.decoding.collaborative_route
    assert routes.decoding.collaborative_route
