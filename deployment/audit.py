"""`make audit`: write a bill of materials of the environment, and check the pinned versions for known vulnerabilities.

    audit.py INTERPRETER     the Python interpreter of the environment

Writes `build/sbom.json` (CycloneDX) and `build/audit.json` (pip-audit), and prints a line per vulnerability. The exit
status is 0 without known vulnerabilities, 1 with some, and 3 if no advisory service responded, so nothing is known.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("osv", "pypi")
"""The advisory services of pip-audit, in the order in which they are tried."""
UNKNOWN = 3


def main(interpreter: str) -> int:
    """Write the bill of materials, audit the pinned versions, and return the exit status."""
    sbom, report = ROOT / "build" / "sbom.json", ROOT / "build" / "audit.json"
    sbom.parent.mkdir(exist_ok=True)
    tools = Path(sys.executable).parent
    project = ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "-o", str(sbom)]
    subprocess.run([str(tools / "cyclonedx-py"), "environment", interpreter, *project], check=True)  # noqa: S603
    sys.stdout.write(f"Wrote the bill of materials to {sbom.relative_to(ROOT)}.\n")
    # strict, because otherwise a version that the service does not know would be skipped silently
    pins = ["-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip", "--strict", "--progress-spinner=off"]
    failures = []
    for source in SOURCES:
        report.unlink(missing_ok=True)
        command = [str(tools / "pip-audit"), "-s", source, "--timeout=10", "-f", "json", "-o", str(report), *pins]
        result = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)  # noqa: S603
        if report.is_file():  # pip-audit writes it only if the service responded for every version
            sys.stdout.writelines(vulnerabilities(json.loads(report.read_text(encoding="utf-8"))))
            return result.returncode
        failures.append(f"{source}: {(result.stderr.strip().splitlines() or ['no message'])[-1]}\n")
    sys.stderr.write(
        f"{''.join(failures)}NOT AUDITED: no advisory service responded for every pinned version. Run `make audit` "
        "on a machine that can reach one; it only needs this checkout.\n"
    )
    return UNKNOWN


def vulnerabilities(report: dict[str, Any]) -> list[str]:
    """Describe each vulnerability of pip-audit's report in a line: package, advisory, and versions with a fix."""
    return [
        f"{pin['name']} {pin['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}\n"
        for pin in report["dependencies"]
        for found in pin["vulns"]
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
