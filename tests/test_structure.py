"""The house: a core that imports no wing, wings in one order, files that one can read through."""

import ast
import pathlib

import fnn

ROOT = pathlib.Path(fnn.__file__).parent
FILES = {
    ".".join(("fnn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imports(name):
    """The modules of fnn that a module imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fnn":
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                found.add(below if below in FILES else node.module)
    return found - {name, "fnn"}


def circle(graph):
    """The nodes of a circle in a graph of sets, or nothing."""
    left = {node: set(after) & set(graph) for node, after in graph.items()}
    while free := [node for node, after in left.items() if not after]:
        left = {node: after - set(free) for node, after in left.items() if node not in free}
    return sorted(left)


def wing(name):
    return name.split(".")[1]


def test_modules_import_one_another_in_no_circle():
    assert not circle({name: imports(name) for name in FILES if name != "fnn"})


def test_wings_import_one_another_in_no_circle_and_the_core_imports_none():
    graph = {wing(name): set() for name in FILES if name != "fnn"}
    for name in FILES:
        if name != "fnn":
            graph[wing(name)] |= {wing(other) for other in imports(name)} - {wing(name)}
    assert graph["core"] == set()
    assert not circle(graph)


def test_the_test_of_circles_finds_one():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_no_file_is_longer_than_400_lines():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not {name: n for name, n in lines.items() if n > 400}
