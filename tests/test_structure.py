"""The shape of the code: no import cycle, not even one that only type checkers see; a file name is never a pattern."""

import ast
from pathlib import Path

import grimp

import macrec_pipeline


def test_no_folder_has_a_cycle_of_imports() -> None:
    """Siblings depend on each other in one direction; import-linter holds the same for the imports that run."""
    graph = grimp.build_graph("macrec_pipeline", exclude_type_checking_imports=False)
    packages = [module for module in sorted(graph.modules) if graph.find_children(module)]
    cycles = {package: found for package in packages if (found := graph.nominate_cycle_breakers(package))}
    assert len(packages) > 20, "the graph holds the package's folders"
    assert not cycles, f"imports that close a cycle, by folder: {cycles}"


def test_polars_never_takes_a_file_name_for_a_pattern() -> None:
    """Folders such as `home[2]` are names, but polars reads `[`, `*` and `?` as a pattern unless it is told not to."""
    calls, found = 0, []
    for path in sorted(Path(macrec_pipeline.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in (
                "read_parquet",
                "scan_parquet",
                "scan_csv",
                "scan_ndjson",
                "read_ipc",
                "scan_ipc",
            ):
                continue
            calls += 1
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if settings.get("glob") != "False":
                found.append(f"{path.name}:{node.lineno}")
    assert calls > 5
    assert not found, f"calls without glob=False: {found}"
