#!/usr/bin/env bash
# Two versions of an MLflow model in one process: the second one runs with the code of the first.
#
# Versions: mlflow-skinny 3.17.2, pandas 3.1.1.
# Source: https://github.com/mlflow/mlflow, mlflow/utils/model_utils.py, _add_code_to_system_path.
#
# One would expect: a model that was saved with `code_paths` brings its own code, so a service that loads version 2 beside
# version 1, to take over without a restart, gets the new weights with the new code. MLflow's documentation presents
# code_paths as the way to ship the code that a model depends on.
#
# Seen: load_model puts the version's code folder first on sys.path, but a package that has been imported stays in
# sys.modules, so an import at the top of the second version's script returns the package of the first. (If the script
# imports the package only inside predict, it is the other way round: both versions run with the code of the one that was
# loaded last.) There is no warning, and the order of loading decides what both answer. A process per version is the remedy.
#
# Output:
#   version 1, then 2: ['code 1', 'code 1']
#   version 2, then 1: ['code 2', 'code 2']
#   version 2 alone: ['code 2']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "mlflow-skinny==3.17.2" "pandas==3.1.1" numpy
cd "$folder"
cat >model.py <<'PYTHON'
import mlflow
import scoring_code


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [scoring_code.NAME]


mlflow.models.set_model(Model())
PYTHON
for version in 1 2; do
    mkdir -p "code$version/scoring_code"
    echo "NAME = 'code $version'" >"code$version/scoring_code/__init__.py"
    PYTHONPATH="code$version" venv/bin/python - "$version" 2>errors <<'PYTHON' || { tail -5 errors >&2; exit 1; }
import sys

import mlflow.pyfunc

version = sys.argv[1]
mlflow.pyfunc.save_model(f"version{version}", python_model="model.py", code_paths=[f"code{version}/scoring_code"])
PYTHON
done
load() {
    venv/bin/python - "$@" 2>errors <<'PYTHON' || { tail -5 errors >&2; exit 1; }
import sys

import mlflow.pyfunc
import pandas as pd

models = [mlflow.pyfunc.load_model(f"version{version}") for version in sys.argv[1:]]
print([model.predict(pd.DataFrame({"x": [1]}))[0] for model in models])
PYTHON
}
{
    echo "version 1, then 2: $(load 1 2)"
    echo "version 2, then 1: $(load 2 1)"
    echo "version 2 alone: $(load 2)"
} >output
diff - output <<'EXPECTED' || { echo "The behaviour has changed." >&2; exit 1; }
version 1, then 2: ['code 1', 'code 1']
version 2, then 1: ['code 2', 'code 2']
version 2 alone: ['code 2']
EXPECTED
echo "As described."
