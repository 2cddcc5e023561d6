"""What importing the code location loads, which every process of Dagster does."""

import subprocess
import sys


def test_the_code_location_loads_nothing_heavy() -> None:
    """torch, transformers, faiss, MLflow and matplotlib are loaded by the assets that need them, not on import."""
    code = "import sys, macrec_pipeline.definitions; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert {"dagster", "macrec_pipeline"} <= loaded
    heavy = {"torch", "transformers", "faiss", "mlflow", "matplotlib", "sentence_transformers", "open_clip", "sklearn"}
    assert not loaded & heavy
