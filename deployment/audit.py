"""`make audit`: what is installed, as a bill of materials, and which known holes the pins have.

    audit.py INTERPRETER     of the environment whose parts are listed

Out: `build/sbom.json` (CycloneDX) and pip-audit's table. Exit status 0: no known hole; 1: some, listed; 3: no source
of advisories can be reached, so that nothing is known.
"""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Service of pip-audit -> an address that answers if it can be asked.
SOURCES = {"osv": "https://api.osv.dev/v1/vulns/PYSEC-2014-8", "pypi": "https://pypi.org/pypi/jinja2/3.1.6/json"}
UNKNOWN = 3


def first_source(sources: dict[str, str], *, timeout: float = 10.0) -> str | None:
    """The first source of advisories that answers with JSON; None if none does."""
    for service, url in sources.items():
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310  # fixed https addresses
                if answer.headers.get_content_type() == "application/json":
                    return service
        except OSError:
            continue
    return None


def main(interpreter: str) -> int:
    """Write the bill of materials, then audit the pins; the exit status."""
    bill = ROOT / "build" / "sbom.json"
    bill.parent.mkdir(exist_ok=True)
    tools = Path(sys.executable).parent
    project = ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "-o", str(bill)]
    subprocess.run([str(tools / "cyclonedx-py"), "environment", interpreter, *project], check=True)  # noqa: S603
    sys.stdout.write(f"The bill of materials is {bill.relative_to(ROOT)}.\n")
    service = first_source(SOURCES)
    if service is None:
        sys.stderr.write(
            f"NOT AUDITED: no source of advisories can be reached ({', '.join(SOURCES.values())}). "
            "Run `make audit` on a machine that reaches one; it needs no more than this checkout.\n"
        )
        return UNKNOWN
    # Strict: a pin that the source does not know would be passed over, and the verdict would be green all the same.
    pins = ["-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip", "--strict", "--progress-spinner=off"]
    return subprocess.run([str(tools / "pip-audit"), "-s", service, *pins], check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
