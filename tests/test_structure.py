"""The shape of the code: no import cycle, not even one that only type checkers see."""

import grimp


def test_no_folder_has_a_cycle_of_imports() -> None:
    """Siblings depend on each other in one direction; import-linter holds the same for the imports that run."""
    graph = grimp.build_graph("macrec_pipeline", exclude_type_checking_imports=False)
    packages = [module for module in sorted(graph.modules) if graph.find_children(module)]
    cycles = {package: found for package in packages if (found := graph.nominate_cycle_breakers(package))}
    assert len(packages) > 20, "the graph holds the package's folders"
    assert not cycles, f"imports that close a cycle, by folder: {cycles}"
