#!/usr/bin/env bash
# A parameter of an MLflow model may be null if it is a scalar, but not if it is an object.
#
# Versions: mlflow-skinny 3.17.2, pandas 3.1.1 (what `mlflow models serve` and `load_model(...).predict` use to check params).
# Source: https://github.com/mlflow/mlflow, mlflow/types/schema.py, ParamSpec.validate_type_and_shape.
#
# One would expect: `"params": {"k": null}` and `"params": {"rules": null}` are treated alike. Either null is a value that
# every parameter takes, or none does. The documentation of ParamSchema names no difference.
#
# Seen: the scalar check returns None for None before it looks at the type, so a null reaches the model and not the
# default of the signature. The object check asks for a dictionary, so the same request with an object is refused. A model
# with parameters of both kinds has to treat null as "the default" itself, and its callers have to leave objects out.
#
# Output:
#   k=null: {'k': None, 'rules': {}}
#   rules=null: refused
#   rules left out: {'k': 3, 'rules': {}}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "mlflow-skinny==3.17.2" "pandas==3.1.1" numpy
"$folder/venv/bin/python" - >"$folder/output" 2>"$folder/errors" <<'PYTHON' || { tail -5 "$folder/errors" >&2; exit 1; }
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _enforce_params_schema
from mlflow.types.schema import AnyType, Object, ParamSchema, ParamSpec, Property

rules = Object([Property("allowed", AnyType(), required=False)])
schema = ParamSchema([ParamSpec("k", "long", 10), ParamSpec("rules", rules, {})])


def show(name, params):
    try:
        print(f"{name}: {dict(sorted(_enforce_params_schema(params, schema).items()))}")
    except MlflowException:
        print(f"{name}: refused")


show("k=null", {"k": None})
show("rules=null", {"rules": None})
show("rules left out", {"k": 3})
PYTHON
diff - "$folder/output" <<'EXPECTED' || { echo "The behaviour has changed." >&2; exit 1; }
k=null: {'k': None, 'rules': {}}
rules=null: refused
rules left out: {'k': 3, 'rules': {}}
EXPECTED
echo "As described."
