"""What importing the code location costs: every process of Dagster does it."""

import subprocess
import sys


def test_the_code_location_loads_nothing_heavy() -> None:
    """torch, transformers, faiss, MLflow and matplotlib are loaded by the asset that needs them, not by the import."""
    code = "import sys, macrec_pipeline.definitions; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(told.stdout.split())
    assert {"dagster", "macrec_pipeline"} <= loaded
    heavy = {"torch", "transformers", "faiss", "mlflow", "matplotlib", "sentence_transformers", "open_clip", "sklearn"}
    assert not loaded & heavy
