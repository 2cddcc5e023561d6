"""Writes deployment/locked/: what each container image installs, as exact versions with the hashes of their files.

Run it as `make lock`, after a change of pyproject.toml or constraints.txt. It asks the package index for the hashes of
the versions in constraints.txt, and needs the program `uv`, whose path is the only argument. The files hold for every
platform and for Python 3.11 to 3.13.

torch and what only torch needs, such as CUDA, have files of their own, because an image may get torch from another
package index, whose builds have other hashes.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKED = ROOT / "deployment" / "locked"
INPUTS = {
    "mlflow": ("--group", "pyproject.toml:image-mlflow"),
    "pipeline": ("pyproject.toml", "--extra", "demo", "--group", "pyproject.toml:image-pipeline"),
    "serve": ("--group", "pyproject.toml:image-serve"),
}
_OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)==")
_HEADER = "# Written by `make lock`; see deployment/lock.py.\n"


def main() -> None:
    """Write a file per image, and another one for its torch if it has one."""
    LOCKED.mkdir(exist_ok=True)
    for image, arguments in INPUTS.items():
        options = ["--constraints", "constraints.txt", "--universal", "--python-version", "3.11", "--generate-hashes"]
        options += ["--no-header", "--no-annotate", "--quiet"]
        command = [sys.argv[1], "pip", "compile", *arguments, *options]
        text = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
        entries = re.findall(r"^\S.*\n(?:    .*\n)*", text, flags=re.MULTILINE)
        of_torch = [entry for entry in entries if _OF_TORCH.match(entry)]
        _write(image, [entry for entry in entries if entry not in of_torch])
        if of_torch:
            _write(f"{image}-torch", of_torch)


def _write(name: str, entries: list[str]) -> None:
    (LOCKED / f"{name}.txt").write_text(_HEADER + "".join(entries), encoding="utf-8")


if __name__ == "__main__":
    main()
