"""From a bundle's folder to MLflow's model folder, which holds all that a consumer needs.

In: the bundle. Out: a folder with the bundle, the script that answers for it (`pyfunc_model`), the few modules of this
package that the script needs, a signature, an example and pinned requirements. Nothing in it is pickled.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.store import own_warnings_ignored

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

# What a consumer's copy of the package holds, and the packages that this needs.
_CODE = ("__init__.py", "errors.py", "recommender", "runtime")
_REQUIREMENTS = ("torch", "transformers", "numpy", "safetensors")
_PACKAGE = Path(__file__).resolve().parent.parent
_EXAMPLE_ITEMS = 3


def save_bundle_model(bundle_folder: Path, destination: Path, *, identity: Model) -> None:
    """Write MLflow's model folder of a bundle.

    Args:
        bundle_folder: what `RecommenderBundle.write` made.
        destination: a folder that does not exist yet.
        identity: the model's id and run, as MLflow's own description of a model.

    Raises:
        StorageError: the bundle's parts do not belong together.
        TrackingError: the bundle does not answer.
    """
    with own_warnings_ignored():
        import mlflow.pyfunc
    example = checked_example(bundle_folder)
    with tempfile.TemporaryDirectory() as scratch, own_warnings_ignored():
        script = Path(scratch, "pyfunc_model.py")  # a copy, since MLflow writes down where the script lay
        shutil.copyfile(Path(__file__).with_name(script.name), script)
        named = Path(scratch, "bundle")  # the name that the folder gets inside the model; MLflow follows no link
        shutil.copytree(bundle_folder, named)
        mlflow.pyfunc.save_model(
            destination,
            python_model=str(script),
            artifacts={"bundle": str(named)},
            code_paths=[str(copy_code(Path(scratch, "code")))],
            signature=model_signature(),
            input_example=example,
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in _REQUIREMENTS],
            mlflow_model=identity,
        )


def copy_code(destination: Path) -> Path:
    """Copy what a consumer needs of this package below `destination`; returns the copy's folder."""
    copy = destination / _PACKAGE.name
    copy.mkdir(parents=True)
    for name in _CODE:
        source = _PACKAGE / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy / name)
    return copy


def model_signature() -> ModelSignature:
    """The columns and params that the model takes, and the columns that it gives."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

    from macrec_pipeline.tracking.pyfunc_model import DEFAULTS, RULES, UNSEEN

    # Optional means here that a cell may be null: a user without a history. The model itself asks for the column.
    # Of any type, since MLflow turns a list with a null into one of other strings; the model refuses what is no list.
    anything = AnyType()  # type: ignore[no-untyped-call]
    cells = [ColSpec(anything, name, required=False) for name in ("history", *RULES, UNSEEN)]
    # One param of all rules: MLflow's param of a list is never null, and nothing allowed is not no rule.
    rules = Object([Property(name, anything, required=False) for name in RULES])
    types: dict[str, str | Object] = {
        "k": "long",
        "route": "string",
        "exclude_seen": "boolean",
        "beam_width": "long",
        "rules": rules,
    }
    return ModelSignature(
        inputs=Schema([*cells, ColSpec(DataType.string, "user_id", required=False)]),
        outputs=Schema(
            [
                ColSpec(Array(DataType.string), "item_ids"),
                ColSpec(Array(DataType.double), "scores"),
                ColSpec(DataType.string, "fallback"),
            ]
        ),
        params=ParamSchema([ParamSpec(name, types[name], default) for name, default in DEFAULTS.items()]),
    )


def checked_example(bundle_folder: Path) -> tuple[Any, dict[str, Any]]:
    """A request that the bundle has just answered: nothing is registered that does not answer.

    Returns:
        Rows with one history of the bundle's own items, and params.

    Raises:
        StorageError: the bundle's parts do not belong together.
        TrackingError: it does not answer.
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
    del params["rules"]  # MLflow can infer no type of an empty mapping
    try:
        answer = model.predict(context, rows, params)
    except MlflowException as error:
        raise TrackingError(
            f"The bundle in {bundle_folder} does not answer its own example: {error.message}"
        ) from error
    if not len(answer["item_ids"][0]):
        raise TrackingError(f"The bundle in {bundle_folder} recommends nothing to its own example.")
    return rows, params
