"""The layout of the package: which way dependencies point, and what a module may do."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wayward_jax"

# A module imports only from its own layer and from the layers before it. Files beside `__init__`
# and the other packages are the first layer; `api`, `tuning` and `__init__` are the library's face.
FIRST = 0
LAYERS = ["training", "jobs", "face", "analysis", "experiments"]

# Programs print, and read flags and the environment. These modules are parts of programs.
PROGRAM_PARTS = ["wayward_jax.jobs", "wayward_jax.analysis.analyze"]


def module_of(file):
    """The dotted name of a file."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(file): file
    for folder in ("wayward_jax", "experiments", "tests")
    for file in (ROOT / folder).rglob("*.py")
}
OURS = [name for name in FILES if name.split(".")[0] in ("wayward_jax", "experiments")]
TESTS = [name for name in FILES if name.split(".")[-1].startswith(("test_", "conftest"))]


@functools.cache
def syntax(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(module):
    """All modules that a module imports, wherever in its code it does so."""
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole in FILES or whole == "wayward_jax.__version__"
                yield whole if is_module else node.module


def layer(module):
    top, *inner = module.split(".")
    if top == "experiments":
        name = top
    elif not inner or inner in (["api"], ["tuning"]):
        name = "face"
    else:
        name = inner[0]
    return LAYERS.index(name) + 1 if name in LAYERS else FIRST


def is_in(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_dependencies_point_one_way():
    against = {
        (module, imported)
        for module in OURS
        for imported in imports(module)
        if imported in OURS and layer(imported) > layer(module)
    }
    assert not against


def test_the_package_imports_no_tests():
    assert not [
        (module, imported)
        for module in OURS
        for imported in imports(module)
        if is_in(imported, ["tests"])
    ]


@pytest.mark.parametrize(
    "module",
    [name for name in OURS if is_in(name, ["wayward_jax"]) and not is_in(name, PROGRAM_PARTS)],
)
def test_the_library_neither_prints_nor_reads_flags_or_the_environment(module):
    assert not [imported for imported in imports(module) if is_in(imported, ["absl"])]
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.Name):
            assert node.id != "print", f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv"), f"line {node.lineno}"


def test_no_test_module_imports_another():
    helpers = ["tests.helpers"]
    assert not [
        (module, imported)
        for module in TESTS
        for imported in imports(module)
        if is_in(imported, ["tests"]) and not is_in(imported, helpers)
    ]


def test_folders_of_tests_mirror_the_package():
    packages = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    tested = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    assert tested == packages | {"experiments", "end_to_end"}


def test_files_of_tests_mirror_the_flat_files():
    flat = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"}
    tested = {file.stem.removeprefix("test_") for file in (ROOT / "tests").glob("test_*.py")}
    assert tested - {"house", "docs"} <= flat


def test_importing_the_package_imports_neither_jax_nor_transformers():
    code = "import sys, wayward_jax; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    heavy = {"jax", "flax", "numpy", "pandas", "torch", "transformers"}
    assert process.returncode == 0, process.stderr
    assert not heavy & set(process.stdout.split())
