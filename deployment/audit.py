"""`make audit`: what is installed, as a bill of materials, and which known holes the pins have.

    audit.py INTERPRETER     of the environment whose parts are listed

Out: `build/sbom.json` (CycloneDX), `build/audit.json` (pip-audit) and a line a hole. Exit status 0: no known hole; 1:
some, listed; 3: no source of advisories has answered, so that nothing is known.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("osv", "pypi")
"""The services that pip-audit knows, in the order in which they are asked."""
UNKNOWN = 3


def main(interpreter: str) -> int:
    """Write the bill of materials, then audit the pins; the exit status."""
    bill, report = ROOT / "build" / "sbom.json", ROOT / "build" / "audit.json"
    bill.parent.mkdir(exist_ok=True)
    tools = Path(sys.executable).parent
    project = ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "-o", str(bill)]
    subprocess.run([str(tools / "cyclonedx-py"), "environment", interpreter, *project], check=True)  # noqa: S603
    sys.stdout.write(f"The bill of materials is {bill.relative_to(ROOT)}.\n")
    # Strict: a pin that the source does not know would be passed over, and the verdict would be green all the same.
    pins = ["-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip", "--strict", "--progress-spinner=off"]
    silent = []
    for source in SOURCES:
        report.unlink(missing_ok=True)
        asked = [str(tools / "pip-audit"), "-s", source, "--timeout=10", "-f", "json", "-o", str(report), *pins]
        done = subprocess.run(asked, check=False, stderr=subprocess.PIPE, text=True)  # noqa: S603
        if report.is_file():  # pip-audit writes it only when it has an answer for every pin
            sys.stdout.writelines(holes(json.loads(report.read_text(encoding="utf-8"))))
            return done.returncode
        silent.append(f"{source}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}\n")
    sys.stderr.write(
        f"{''.join(silent)}NOT AUDITED: no source of advisories has answered for every pin. Run `make audit` on a "
        "machine that reaches one; it needs no more than this checkout.\n"
    )
    return UNKNOWN


def holes(report: dict[str, Any]) -> list[str]:
    """A line for each hole in pip-audit's report: which pin, which advisory, and where it is mended."""
    return [
        f"{pin['name']} {pin['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version'}\n"
        for pin in report["dependencies"]
        for hole in pin["vulns"]
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
