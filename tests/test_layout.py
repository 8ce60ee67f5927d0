"""A folder imports only folders that stand above it; the rule is read from the source."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import secateur

# from the ground up: each may import those before it, and itself
ORDER = [
    "errors", "version", "support", "core", "network", "data", "frontends", "pruning",
    "evaluation", "hardware", "export", "report", "render", "result", "options", "timing",
    "fingerprint", "session", "tracing", "conditioning", "preparation", "low_precision",
    "parts", "api", "sweeps", "advice", "example", "cli",
]  # fmt: skip
ROOT = Path(secateur.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in ORDER)


def module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imported(path: Path, *, types: bool = True) -> list[str]:
    """Modules of the package that a file imports, in functions and for type checkers too."""
    tree, found = ast.parse(path.read_text()), list[str]()
    unread = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
            unread |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secateur"):
            assert node.module is not None
            for name in node.names:
                full = f"{node.module}.{name.name}"
                found.append(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.startswith("secateur.")]
    return [name for name in found if name in MODULES]


def folder(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: module(path).removeprefix("secateur."))
def test_a_file_imports_only_what_stands_above_it(path):
    own = ORDER.index(folder(module(path)))
    below = [name for name in imported(path) if ORDER.index(folder(name)) > own]
    assert below == []


def test_files_import_each_other_in_no_circle():
    edges = {name: set(imported(path, types=False)) - {name} for name, path in MODULES.items()}
    readers = defaultdict(set)
    for name, others in edges.items():
        for other in others:
            readers[other].add(name)
    free = [name for name, others in edges.items() if not others]
    while free:
        gone = free.pop()
        edges.pop(gone, None)
        for name in readers[gone]:
            edges[name].discard(gone)
            if name in edges and not edges[name]:
                free.append(name)
    assert sorted(edges) == []


# what need not be installed, or not on every system; those of ours import onnx
OPTIONAL = {"onnx", "openvino", "onnxruntime", "resource", "deepsparse"}
OPTIONAL |= {"secateur.frontends.onnx", "secateur.frontends.openvino.graph"}
OPTIONAL |= {"secateur.export.onnx_surgery", "secateur.export.onnx_weights"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: module(path).removeprefix("secateur."))
def test_a_function_imports_only_what_is_optional(path):
    tree = ast.parse(path.read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    inner = [node for function in functions for node in ast.walk(function)]
    names = [of.name for node in inner if isinstance(node, ast.Import) for of in node.names]
    for node in (node for node in inner if isinstance(node, ast.ImportFrom)):
        whole = {f"{node.module}.{of.name}" for of in node.names}
        names.append(whole.pop() if whole <= OPTIONAL else node.module or "")
    assert [name for name in names if not {name, name.partition(".")[0]} & OPTIONAL] == []
