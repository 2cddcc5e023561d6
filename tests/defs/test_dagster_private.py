"""The private parts of Dagster that the package relies on still exist and mean the same.

If one of these tests fails after an update of Dagster, look up the new name or meaning in Dagster's source, adapt
`macrec_pipeline/defs/dagster_private.py` (or the caller of a method listed here), and set `CHECKED_VERSION`.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage import tags as dagster_tags

from macrec_pipeline.defs import dagster_private

ROOT = Path(__file__).resolve().parents[2]
CHECKED_VERSION = "1.13.27"
WHAT_TO_DO = "Dagster has changed: see the docstring of this file, and the reasons in defs/dagster_private.py."
PARAMETERS: dict[Callable[..., Any], set[str]] = {
    dagster_private.DagsterGrpcClient.__init__: {"host", "port"},
    dagster_private.DagsterGrpcClient.list_repositories: set(),
    InstanceRef.from_dir: {"base_dir", "overrides"},
    JobFailureData.__new__: {"error", "failure_reason"},
    # The following have public names, but Dagster does not document them.
    dg.DagsterInstance.from_ref: {"instance_ref"},
    dg.DagsterInstance.add_run_tags: {"run_id", "new_tags"},
    dg.DagsterInstance.all_logs: {"run_id", "of_type"},
    dg.DagsterInstance.get_daemon_heartbeats: set(),
    dg.DagsterInstance.get_runs: {"filters", "limit"},
    dg.DagsterInstance.all_instigator_state: set(),
    dg.DagsterInstance.get_ticks: {"origin_id", "selector_id", "before"},
    dg.DagsterInstance.purge_ticks: {"origin_id", "selector_id", "before"},
    dg.DagsterInstance.storage_directory: set(),
    dg.DagsterInstance.report_run_canceled: {"dagster_run", "message"},
    dg.DagsterInstance.report_run_canceling: {"run", "message"},
    dg.DagsterInstance.report_run_failed: {"dagster_run", "message", "job_failure_data"},
    dg.Definitions.resolve_asset_graph: set(),
    dg.Definitions.resolve_job_def: {"name"},
    dg.AssetSelection.resolve: {"all_assets"},
}
PROPERTIES = [
    (dg.DagsterInstance, "event_log_storage"),
    (dg.DagsterInstance, "run_storage"),
    (dg.DagsterInstance, "schedule_storage"),
    (dg.JobDefinition, "asset_layer"),
    (dg.AssetExecutionContext, "op_execution_context"),
    (dg.AssetExecutionContext, "retry_number"),
    (dg.AssetExecutionContext, "run"),
    (dg.PipesFileMessageReader, "expected_writer_count"),
    (dagster_private.AssetGraph, "toposorted_asset_keys_by_level"),
]
TAGS = {
    "PARTITION_TAG": "PARTITION_NAME_TAG",
    "PARENT_RUN_ID_TAG": "PARENT_RUN_ID_TAG",
    "ROOT_RUN_ID_TAG": "ROOT_RUN_ID_TAG",
    "RETRY_ON_STEP_FAILURE_TAG": "RETRY_ON_ASSET_OR_OP_FAILURE_TAG",
    "WILL_RETRY_TAG": "WILL_RETRY_TAG",
    "REPOSITORY_TAG": "REPOSITORY_LABEL_TAG",
}


def test_the_installed_version_is_the_one_that_was_checked() -> None:
    """A new version of Dagster is a reason to read the release notes and run all tests of this folder."""
    assert dg.__version__ == CHECKED_VERSION, (
        f"dagster {dg.__version__} is installed, but its private parts were checked against {CHECKED_VERSION}. If the "
        f"other tests of tests/defs pass, set CHECKED_VERSION, and the version in defs/dagster_private.py. {WHAT_TO_DO}"
    )
    assert CHECKED_VERSION in (dagster_private.__doc__ or "")


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda function: function.__qualname__)
def test_functions_have_the_parameters_that_are_used(function: Callable[..., Any]) -> None:
    """A parameter that was renamed or removed would fail only when the code that passes it runs."""
    parameters = inspect.signature(function).parameters
    assert PARAMETERS[function] <= parameters.keys(), f"{function.__qualname__} has {list(parameters)}. {WHAT_TO_DO}"


@pytest.mark.parametrize(("owner", "name"), PROPERTIES, ids=lambda value: getattr(value, "__name__", value))
def test_undocumented_properties_exist(owner: type, name: str) -> None:
    """The public but undocumented properties of Dagster that this package uses exist."""
    assert hasattr(owner, name), f"{owner.__name__}.{name} is gone. {WHAT_TO_DO}"


@pytest.mark.parametrize("name", TAGS)
def test_tags_are_the_ones_that_dagster_uses(name: str) -> None:
    """The package writes them as strings, because Dagster exports no constants for them."""
    assert getattr(dagster_private, name) == getattr(dagster_tags, TAGS[name]), f"{TAGS[name]}: {WHAT_TO_DO}"


def test_a_materialization_is_tagged_with_both_versions(instance: dg.DagsterInstance) -> None:
    """Resuming a run reads the code version and the data version from these tags."""

    @dg.asset(code_version="7")
    def example() -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult(data_version=dg.DataVersion("abc"))

    (event,) = dg.materialize([example], instance=instance).asset_materializations_for_node("example")
    tags = event.tags or {}
    versions = (tags[dagster_private.CODE_VERSION_TAG], tags[dagster_private.DATA_VERSION_TAG])
    assert versions == ("7", "abc"), WHAT_TO_DO


@pytest.mark.parametrize("name", ["DagsterPipesExecutionError", "DagsterUserCodeUnreachableError"])
def test_errors_are_not_exported(name: str) -> None:
    """Once Dagster exports one of them, the public name should be used."""
    assert issubclass(getattr(dagster_private, name), Exception)
    assert not hasattr(dg, name), f"dagster.{name} is public now: use it and remove it from defs/dagster_private.py."


def test_an_instance_can_be_opened_without_capturing_output(tmp_path: Path) -> None:
    """One setting of the folder's instance is replaced; the others, such as the pool limits, still apply."""
    (tmp_path / "dagster.yaml").write_text("concurrency: {pools: {default_limit: 3}}\n", encoding="utf-8")
    with dagster_private.open_instance_without_output_capture(tmp_path) as instance:
        assert type(instance.compute_log_manager).__name__ == "NoOpComputeLogManager", WHAT_TO_DO
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 3, WHAT_TO_DO
    no_capture = dagster_private.NO_OUTPUT_CAPTURE
    assert hasattr(importlib.import_module(no_capture["module"]), no_capture["class"]), WHAT_TO_DO


def test_the_failure_of_a_dead_process_has_the_reason_that_dagster_retries() -> None:
    """`tests/defs/test_code_server.py` shows that the daemon retries it."""
    reason = dagster_private.unexpected_termination().failure_reason
    assert reason is RunFailureReason.UNEXPECTED_TERMINATION, WHAT_TO_DO


def test_no_other_module_imports_private_parts_of_dagster() -> None:
    """Everything that a new version of Dagster may break is in one file."""
    for path in sorted((ROOT / "macrec_pipeline").rglob("*.py")):
        if path != Path(dagster_private.__file__):
            private = re.findall(r"^\s*(?:from|import) dagster\._.*", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert not private, f"{path} imports private parts of Dagster; import them in defs/dagster_private.py"
