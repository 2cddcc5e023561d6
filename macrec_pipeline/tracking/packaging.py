"""Convert the folder of a bundle to MLflow's model folder, which contains everything that a consumer needs.

The input is the bundle. The output is a folder with the bundle, the script that serves it (`pyfunc_model`), the modules
of this package that the script needs, a signature, an input example and pinned requirements. Nothing in it is pickled.
If the bundle is a refit, the folder also has those files of the evaluated bundle that differ. Serving ignores them.
"""

from __future__ import annotations

import filecmp
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.store import mlflow_warnings_ignored

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

# The parts of this package that a consumer's copy contains, and the packages that these parts need.
_CODE = ("__init__.py", "errors.py", "recommender", "runtime")
_REQUIREMENTS = ("torch", "transformers", "numpy", "safetensors")
EVALUATED = "evaluated"
"""The artifact with the files in which the evaluated bundle differs from its refit."""
_PACKAGE = Path(__file__).resolve().parent.parent
_EXAMPLE_ITEMS = 3


def save_bundle_model(
    bundle_folder: Path, destination: Path, *, identity: Model, evaluated_folder: Path | None = None
) -> None:
    """Write MLflow's model folder for a bundle.

    Args:
        bundle_folder: the result of `RecommenderBundle.write`.
        destination: a folder that does not exist yet.
        identity: MLflow's description of the model, with its id and run.
        evaluated_folder: the bundle that was evaluated, if the other one is its refit.

    Raises:
        StorageError: the parts of the bundle do not belong together.
        TrackingError: the bundle cannot recommend.
    """
    with mlflow_warnings_ignored():
        import mlflow.pyfunc

        from macrec_pipeline.tracking.pyfunc_model import CODE
    example = checked_example(bundle_folder)
    with tempfile.TemporaryDirectory() as scratch, mlflow_warnings_ignored():
        script = Path(scratch, "pyfunc_model.py")  # a copy, because MLflow records the path of the script
        shutil.copyfile(Path(__file__).with_name(script.name), script)
        # MLflow uses the folder's name inside the model and does not follow links, so the folder is copied.
        bundle_copy = Path(scratch, "bundle")
        shutil.copytree(bundle_folder, bundle_copy)
        code = copy_code(Path(scratch, "code"))
        artifacts = {"bundle": str(bundle_copy), CODE: str(write_code_digests(code, Path(scratch, "code.json")))}
        if evaluated_folder is not None:
            artifacts[EVALUATED] = str(copy_differences(evaluated_folder, bundle_folder, Path(scratch, EVALUATED)))
        mlflow.pyfunc.save_model(
            destination,
            python_model=str(script),
            artifacts=artifacts,
            code_paths=[str(code)],
            signature=model_signature(),
            input_example=example,
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in _REQUIREMENTS],
            mlflow_model=identity,
        )


def copy_differences(evaluated: Path, served: Path, destination: Path) -> Path:
    """Copy the files of the evaluated bundle that the served one lacks or has with other contents.

    Copied over the served bundle they give the evaluated one: both have the same parts.

    Args:
        evaluated, served: the two bundles.
        destination: a folder that does not exist yet.
    """
    destination.mkdir()
    for path in sorted(path for path in evaluated.rglob("*") if path.is_file()):
        name = path.relative_to(evaluated)
        if not (served / name).is_file() or not filecmp.cmp(path, served / name, shallow=False):
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination / name)
    return destination


def copy_code(destination: Path) -> Path:
    """Copy the parts of this package that a consumer needs to a folder below `destination`, and return that folder."""
    copy = destination / _PACKAGE.name
    copy.mkdir(parents=True)
    for name in _CODE:
        source = _PACKAGE / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            # Without the permissions of the installed package, which everybody may read.
            shutil.copytree(source, copy / name, ignore=ignored, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, copy / name)
    return copy


def write_code_digests(code: Path, destination: Path) -> Path:
    """Write the digests of a copy of the code, which the served model compares with the code that runs it.

    Args:
        code: the result of `copy_code`.
        destination: the file to write, which is also returned.
    """
    from macrec_pipeline.tracking.pyfunc_model import code_digests

    names = sorted(path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file())
    destination.write_text(json.dumps(code_digests(code, names), indent=1) + "\n", encoding="utf-8")
    return destination


def model_signature() -> ModelSignature:
    """Describe the input columns, the parameters and the output columns of the model."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

    from macrec_pipeline.tracking.pyfunc_model import DEFAULTS, RULES, UNSEEN

    # Optional columns may have null cells, as for a user without a history. The model itself requires `history`.
    # The columns accept any type because MLflow would convert the other values of a list that contains a null to
    # strings; the model itself rejects cells that are not lists. `user_id` is the caller's own and may be of any type.
    any_type = AnyType()  # type: ignore[no-untyped-call]
    columns = [ColSpec(any_type, name, required=False) for name in ("history", *RULES, UNSEEN, "user_id")]
    # All rules are one parameter: a parameter of MLflow with a list type cannot be null, and an empty list of allowed
    # items differs from no rule.
    rules = Object([Property(name, any_type, required=False) for name in RULES])
    types: dict[str, str | Object] = {
        "k": "long",
        "route": "string",
        "exclude_seen": "boolean",
        "beam_width": "long",
        "rules": rules,
        "explain": "boolean",
        "diversity": "double",
        "max_per_category": "long",
        "max_per_prefix": "long",
        "prefix_length": "long",
    }
    return ModelSignature(
        inputs=Schema([*columns]),
        outputs=Schema(
            [
                ColSpec(Array(DataType.string), "item_ids"),
                ColSpec(Array(DataType.double), "scores"),
                ColSpec(DataType.string, "fallback"),
                ColSpec(any_type, "explanations", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec(name, types[name], default) for name, default in DEFAULTS.items()]),
    )


def checked_example(bundle_folder: Path) -> tuple[Any, dict[str, Any]]:
    """Build an example request and check that the bundle can serve it, so that no broken bundle is registered.

    Returns:
        A table with one history of the bundle's own items, and the parameters.

    Raises:
        StorageError: the parts of the bundle do not belong together.
        TrackingError: the bundle cannot serve the request, or recommends nothing.
    """
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.model import PythonModelContext

    from macrec_pipeline.tracking.pyfunc_model import DEFAULTS, RecommenderModel

    model = RecommenderModel()
    context = PythonModelContext({"bundle": str(bundle_folder)}, None)  # type: ignore[no-untyped-call]
    model.load_context(context)
    rows = pd.DataFrame({"history": [[str(item_id) for item_id in model.bundle.item_ids[:_EXAMPLE_ITEMS]]]})
    params = DEFAULTS | {"k": min(DEFAULTS["k"], model.bundle.num_items)}
    # MLflow cannot infer the type of an empty mapping or of null
    params = {name: value for name, value in params.items() if value is not None and value != {}}
    try:
        answer = model.predict(context, rows, params)
    except MlflowException as error:
        raise TrackingError(
            f"The bundle in {bundle_folder} cannot recommend for its example: {error.message}"
        ) from error
    if not len(answer["item_ids"][0]):
        raise TrackingError(f"The bundle in {bundle_folder} recommends no items for its example.")
    return rows, params
