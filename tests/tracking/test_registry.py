"""Registering and loading models: content of a version, tags, aliases, and clear errors when something is missing."""

import ast
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import RegisteredVersion, Tracker, load_model, packaging
from macrec_pipeline.tracking.packaging import copy_code
from macrec_pipeline.tracking.registry import bundle_digest
from macrec_pipeline.tracking.store import connect


def register(tracker: Tracker, bundle_folder: Path, dataset: str = "demo", **changes: Any) -> RegisteredVersion:
    with tracker.asset_run(
        dataset=dataset, asset="registered_model", dagster_run_id="run-1", config=resolve_config("demo")
    ) as run:
        arguments = {"metrics": {"hr_10": 0.25, "ndcg_10": float("nan")}, "dagster_run_id": "run-1"} | changes
        return tracker.register(bundle_folder, dataset=dataset, run_id=run.run_id, **arguments)


def test_a_registered_version_is_complete(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """The version has its tags, aliases and metrics, and belongs to its run and its logged model."""
    registered = register(tracker, bundle_folder, tags={"note": "weekly"})
    assert (registered.name, registered.version, registered.uri) == ("macrec-demo", 1, "models:/macrec-demo/1")
    assert registered.aliases == ("challenger", "champion")
    client = connect(home).client
    found = client.get_model_version_by_alias("macrec-demo", "champion")
    assert found.version == client.get_model_version_by_alias("macrec-demo", "challenger").version == 1
    assert found.tags["metric.hr_10"] == "0.25"
    assert "metric.ndcg_10" not in found.tags
    assert found.tags["dagster.run_id"] == "run-1"
    assert found.tags["macrec.bundle_digest"] == registered.bundle_digest
    assert (found.tags["macrec.dataset"], found.tags["note"]) == ("demo", "weekly")
    run = client.get_run(found.run_id)
    assert run.data.tags["macrec.asset"] == "registered_model"
    assert run.data.metrics["hr_10"] == 0.25
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert found.source == logged.artifact_location
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "macrec-demo", "version": 1}]
    assert (str(logged.status), logged.name) == ("READY", "macrec-demo")
    assert {metric.key: metric.value for metric in logged.metrics} == {"hr_10": 0.25}
    assert (home / "mlflow" / "artifacts" / "demo").as_uri() in found.source


def test_the_content_of_a_version(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """A version has the bundle's bytes, the script, the modules that it needs, pinned requirements, and no pickle."""
    registered = register(tracker, bundle_folder)
    uri = connect(home).client.get_model_version_download_uri(registered.name, str(registered.version))
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert (folder / "artifacts" / "bundle" / "bundle.json").read_bytes() == (
        bundle_folder / "bundle.json"
    ).read_bytes()
    assert {"MLmodel", "pyfunc_model.py", "code/macrec_pipeline/errors.py", "input_example.json"} <= names
    assert not any(name.startswith("code/macrec_pipeline/tracking") or "__pycache__" in name for name in names)
    assert not any(name.endswith((".pkl", ".pyc")) for name in names)
    requirements = (folder / "requirements.txt").read_text().split()
    assert f"mlflow=={version('mlflow')}" in requirements
    assert f"numpy=={version('numpy')}" in requirements
    assert {line.partition("==")[0] for line in requirements} == {
        "mlflow",
        "torch",
        "transformers",
        "numpy",
        "safetensors",
    }
    assert str(Path(__file__).parents[2]) not in (folder / "MLmodel").read_text()


def test_the_digest_depends_only_on_names_and_content(tmp_path: Path) -> None:
    """Equal files with equal names have the documented digest, and another name changes it."""
    for name in ("one", "two"):
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "a" / "b.bin").write_bytes(b"b")
        (tmp_path / name / "a.json").write_text("{}")
    pairs = [["a.json", hashlib.sha256(b"{}").hexdigest()], ["a/b.bin", hashlib.sha256(b"b").hexdigest()]]
    expected = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    assert bundle_digest(tmp_path / "one") == bundle_digest(tmp_path / "two") == expected
    (tmp_path / "two" / "a.json").rename(tmp_path / "two" / "c.json")
    assert bundle_digest(tmp_path / "two") != expected


def test_a_second_version_is_only_challenger(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """The champion keeps its alias until somebody moves it; another data set has its own champion."""
    register(tracker, bundle_folder)
    second = register(tracker, bundle_folder)
    assert (second.version, second.aliases) == (2, ("challenger",))
    client = connect(home).client
    assert client.get_registered_model("macrec-demo").aliases == {"champion": 1, "challenger": 2}
    assert register(tracker, bundle_folder, dataset="other").aliases == ("challenger", "champion")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            {"item_ids": ["a", "b"], "answers": False},
            "cannot recommend for its example: the fake bundle rejects every request",
        ),
        ({"item_ids": []}, "cannot recommend for its example: `k` must be"),
    ],
)
def test_a_bundle_that_cannot_recommend_is_not_registered(
    tracker: Tracker, home: Path, bundle_folder: Path, content: dict, problem: str
) -> None:
    """A bundle must serve an example before it is registered; one that fails leaves no registered model behind."""
    (bundle_folder / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(TrackingError, match=problem):
        register(tracker, bundle_folder)
    assert list(connect(home).client.search_registered_models()) == []


def test_a_missing_bundle_is_rejected(tracker: Tracker, tmp_path: Path) -> None:
    """The message names the missing folder."""
    with pytest.raises(TrackingError, match="nowhere cannot be registered"):
        register(tracker, tmp_path / "nowhere")


def test_a_small_catalogue_can_be_registered(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """A catalogue with fewer items than the default k can be registered and served."""
    (bundle_folder / "bundle.json").write_text(json.dumps({"item_ids": ["a", "b"]}))
    register(tracker, bundle_folder)
    answer = load_model("models:/macrec-demo/1", home).predict(pd.DataFrame({"history": [["a"]]}), params={"k": 2})
    assert answer["item_ids"].tolist() == [["a", "b"]]


def test_models_are_loaded_by_alias_and_by_version(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """Both kinds of URI load a working model, and the import path of the process does not change."""
    register(tracker, bundle_folder)
    before = list(sys.path)
    for uri in ("models:/macrec-demo@champion", "models:/macrec-demo@challenger", "models:/macrec-demo/1"):
        model = load_model(uri, home)
        rows = pd.DataFrame({"history": [["item-1"], None, []], "user_id": ["u1", "u2", None]})
        answer = model.predict(rows, params={"k": 3})
        assert answer["item_ids"].tolist() == [["item-0", "item-1", "item-2"]] * 3
        assert answer["fallback"].tolist() == ["none", "popularity", "popularity"]
        assert model.unwrap_python_model().bundle.num_items == 12
    assert sys.path == before


def test_missing_models_raise_errors_that_list_the_existing_ones(
    tracker: Tracker, home: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """A missing model, version, alias or store and an invalid URI each raise an error of one line."""
    with pytest.raises(TrackingError, match=r"Registered models: none yet, run `macrec run DATASET`\.$"):
        load_model("models:/macrec-demo@champion", home)
    register(tracker, bundle_folder)
    listed = r"Registered models: macrec-demo \(newest version 1, @challenger is 1, @champion is 1\)\.$"
    for uri in ("models:/macrec-demo@nobody", "models:/macrec-demo/2", "models:/macrec-other@champion"):
        with pytest.raises(TrackingError, match=rf"^{uri} does not exist in sqlite:.*{listed}"):
            load_model(uri, home)
    for uri in ("macrec-demo", "models:/macrec-demo", "models:/macrec-demo/Production", "runs:/1/x", "../x", ""):
        with pytest.raises(TrackingError, match=r"is not the URI of a model\. Use models:/NAME@ALIAS"):
            load_model(uri, home)
    with pytest.raises(TrackingError, match="There is no MLflow store in"):
        load_model("models:/macrec-demo@champion", tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_a_model_without_files_raises_an_error(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """A version whose artifacts were deleted by hand raises an error that names it."""
    register(tracker, bundle_folder)
    (home / "mlflow" / "artifacts").rename(home / "elsewhere")
    with pytest.raises(TrackingError, match="models:/macrec-demo/1"):
        load_model("models:/macrec-demo/1", home)


def test_a_scoring_server_serves_the_model(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """MLflow's scoring server answers valid requests, and responds to invalid ones with status 400."""
    register(tracker, bundle_folder)
    model = load_model("models:/macrec-demo@champion", home)

    def post(rows: list[dict[str, Any]], **params: Any) -> Any:
        payload = json.dumps({"dataframe_records": rows, "params": params})
        return invocations(payload, "application/json", model, model.metadata.get_input_schema())

    valid = post([{"history": ["item-1", "unknown"], "user_id": "u1"}, {"history": None}], k=2, route="text")
    assert valid.status == 200
    assert json.loads(valid.response)["predictions"] == [
        {"item_ids": ["item-0", "item-1"], "scores": [1.0, 0.5], "fallback": "none"},
        {"item_ids": ["item-0", "item-1"], "scores": [1.0, 0.5], "fallback": "popularity"},
    ]
    invalid: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        ([{"hist": ["item-1"]}], {}),
        ([{"history": "item-1"}], {}),
        ([{"history": [1, 2]}], {}),
        ([{"history": []}], {"k": 0}),
        ([{"history": []}], {"k": "many"}),
        ([{"history": []}], {"k": 13}),
        ([{"history": []}], {"route": "audio"}),
        ([{"history": []}], {"beam_width": -1}),
    ]
    for rows, params in invalid:
        with pytest.raises(MlflowException) as caught:
            post(rows, **params)
        assert caught.value.get_http_status_code() == 400, (rows, params)


def test_ids_arrive_whole_in_every_form_of_a_request(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """Nulls, missing keys and user ids of any type change no id, and a list with a null is an error that says where."""
    register(tracker, bundle_folder)
    model = load_model("models:/macrec-demo@champion", home)
    bundle: Any = model.unwrap_python_model().bundle

    def post(payload: dict[str, Any]) -> Any:
        return invocations(json.dumps(payload), "application/json", model, model.metadata.get_input_schema())

    long_id = "item-1-with-a-long-name"
    histories = [["item-1", long_id], None, [], [long_id]]
    whole = [["item-1", long_id], [], [], [long_id]]
    for user_ids in (["u1", None, "u3", "u4"], [1, 2, 3, 4], [1, None, 3.5, "u4"]):
        records = [{"history": h, "user_id": u} for h, u in zip(histories, user_ids, strict=True)]
        split = {"columns": ["history", "user_id"], "data": [list(record.values()) for record in records]}
        for payload in ({"dataframe_records": records}, {"dataframe_split": split}, {"inputs": records}):
            answer = post(payload | {"params": {"k": 2, "route": None}})
            assert answer.status == 200
            assert bundle.last_request["histories"] == whole, payload
            assert bundle.last_request["route"] == "fused"
    columns = {"history": histories, "allowed": [None, [long_id], [], None]}
    assert post({"inputs": columns}).status == 200
    assert bundle.last_request["histories"] == whole
    assert [rules and list(rules.allowed) for rules in bundle.rules[1]] == [None, [long_id], [], None]
    missing = [{"history": ["item-1"], "excluded": [long_id]}, {"history": [long_id]}, {"excluded": None}]
    assert post({"dataframe_records": missing}).status == 200
    assert bundle.last_request["histories"] == [["item-1"], [long_id], []]
    assert [rules and list(rules.excluded) for rules in bundle.rules[1]] == [[long_id], None, None]

    for cell, found in (
        (["item-1", None], "None at position 1"),
        ([1, 2], "1 at position 0"),
        (["item-1", 2.5], "2.5 at position 1"),
        ("item-1", "str 'item-1'"),
    ):
        for payload in (
            {"dataframe_records": [{"history": cell}]},
            {"dataframe_split": {"columns": ["history"], "data": [[cell]]}},
            {"inputs": [{"history": cell}]},
        ):
            with pytest.raises(MlflowException) as caught:
                post(payload)
            assert caught.value.get_http_status_code() == 400
            assert found in caught.value.message, payload


def modules_imported_by(path: Path) -> set[str]:
    """Return the modules of this package that a file imports at run time, without imports for type checking."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return {name for name in names if name.split(".")[0] == "macrec_pipeline"}


def test_the_copied_code_is_complete(tmp_path: Path) -> None:
    """The copy contains every module that it, or the script next to it, imports."""
    copy = copy_code(tmp_path)
    script = Path(packaging.__file__).with_name("pyfunc_model.py")
    files = [*copy.rglob("*.py"), script]
    assert (copy / "recommender" / "bundle" / "bundle.py") in files
    needed = set().union(*(modules_imported_by(path) for path in files))
    assert "macrec_pipeline.recommender.bundle.bundle" in needed
    for name in needed:
        place = tmp_path / name.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), name
