#!/usr/bin/env bash
# A null in a list of strings reaches an MLflow model as the string "nan", or as "None" if the list holds only nulls.
#
# Versions: mlflow-skinny 3.17.2, pandas 3.1.1, fastapi 0.115 or newer.
# Source: https://github.com/mlflow/mlflow, mlflow/utils/proto_json_utils.py and mlflow/models/utils.py: lists are converted
# with numpy, `np.array(values, dtype=str)`, and pandas.
#
# One would expect: a signature with `Array(DataType.string)` either refuses `["P10", null]`, as it refuses a number where
# a string is declared for a scalar, or passes the null on. A history of item ids is such a list.
#
# Seen: the scoring server's parser and the check of the signature accept the request and turn the null into text. The
# model cannot tell it from an item whose id is "nan" or "None". Which of the two words it is depends on the other elements
# of the list. A signature with `AnyType` for the column passes the null through.
#
# Output:
#   Array(string), ["P10", null]: ['P10', 'nan']
#   Array(string), [null, null]: ['None', 'None']
#   AnyType, ["P10", null]: ['P10', None]
#   AnyType, [null, null]: [None, None]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "mlflow-skinny==3.17.2" "pandas==3.1.1" "numpy==2.4.*" fastapi uvicorn
"$folder/venv/bin/python" - >"$folder/output" 2>"$folder/errors" <<'PYTHON' || { tail -5 "$folder/errors" >&2; exit 1; }
import json

from mlflow.models.utils import _enforce_schema
from mlflow.pyfunc.scoring_server import infer_and_parse_data
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

for name, kind in (("Array(string)", Array(DataType.string)), ("AnyType", AnyType())):
    schema = Schema([ColSpec(kind, "history")])
    for history in (["P10", None], [None, None]):
        parsed = infer_and_parse_data({"inputs": [{"history": history}]}, schema)
        received = _enforce_schema(parsed, schema)["history"].iloc[0]
        print(f"{name}, {json.dumps(history)}: {[None if value is None else str(value) for value in received]}")
PYTHON
diff - "$folder/output" <<'EXPECTED' || { echo "The behaviour has changed." >&2; exit 1; }
Array(string), ["P10", null]: ['P10', 'nan']
Array(string), [null, null]: ['None', 'None']
AnyType, ["P10", null]: ['P10', None]
AnyType, [null, null]: [None, None]
EXPECTED
echo "As described."
