"""Build the documentation site: `make docs`, or `python docs/site/build.py OUTPUT_FOLDER`.

The pages are the Markdown files of the repository, at the same relative paths, and the reference that `reference.py`
generates from the code. Nothing is loaded from the network. Besides the HTML pages, the output has each page's Markdown
file next to it and `llms.txt`, a list of the pages for programs that read text.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

from reference import pages  # noqa: E402 - a script beside this one

_SINGLE_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "dev/LOG.md", "findings/README.md")
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)\s]+)\)")


def main(output: Path) -> int:
    """Build the site in `output` and return the exit status: 0, or 1 if a page has a warning or a broken link."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        _collect(source)
        broken = _broken_links(source)
        print("\n".join(broken), file=sys.stderr, end="\n" * bool(broken))
        status = build_main(["-q", "-W", "--keep-going", "-j", "auto", "-b", "html", str(source), str(output)])
        if status or broken:
            return 1
        _write_plain_pages(source, output)
    print(f"{output / 'index.html'}")
    return 0


def _collect(source: Path) -> None:
    """Copy the pages, the files that they link to, and the generated reference into one folder."""
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("site"))
    for name in _SINGLE_PAGES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    for name in ("conf.py", "index.md"):
        shutil.copyfile(ROOT / "docs" / "site" / name, source / name)
    with (source / "docs" / "decisions" / "README.md").open("a", encoding="utf-8") as index:
        index.write("\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n")
    (source / "reference").mkdir()
    for name, text in pages().items():
        (source / "reference" / name).write_text(text, encoding="utf-8")
    for page in sorted(source.rglob("*.md")):
        for target in _linked_files(page):
            original = ROOT / target.relative_to(source.resolve())
            if not target.exists() and original.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(original, target)


def _linked_files(page: Path) -> list[Path]:
    """Return the files inside the site that a page links to, without anchors."""
    targets = [(page.parent / link.partition("#")[0]).resolve() for link in _links(page)]
    return [target for target in targets if any(parent.name == "source" for parent in target.parents)]


def _broken_links(source: Path) -> list[str]:
    """Return a line for each relative link to a file that the repository does not have."""
    return [
        f"{page.relative_to(source)}: the link to {link} leads nowhere."
        for page in sorted(source.rglob("*.md"))
        for link in _links(page)
        if not (page.parent / link.partition("#")[0]).exists()
    ]


def _links(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", prose))


def _write_plain_pages(source: Path, output: Path) -> None:
    """Put each page's Markdown beside its HTML, and list the pages in llms.txt."""
    lines = ["# macrec_pipeline", "", "> Train a generative recommender from an interaction log and a catalogue.", ""]
    for page in sorted(source.rglob("*.md")):
        name = page.relative_to(source)
        text = page.read_text(encoding="utf-8")
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text, encoding="utf-8")
        title = next(line for line in text.splitlines() if line.startswith("# ")).removeprefix("# ")
        lines.append(f"- [{title}]({name.as_posix()})")
    (output / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").resolve()))
