"""The arrows between the parts of the package, read from its source: nothing is imported here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_plasticity

PACKAGE = Path(lightning_plasticity.__file__).parent

LEAVES = {"data", "entropy", "figures", "lazy", "metrics", "models", "runs", "strategies"}
SYSTEMS = {"continual", "hippocampus", "hopfield", "intrinsic", "sparsity"}
ALLOWED = {  # part -> the other parts that it may import
    "lazy": set(),
    "entropy": set(),
    "figures": set(),
    "metrics": {"lazy"},
    "data": {"lazy"},
    "runs": set(),
    "strategies": set(),
    "models": {"metrics"},
    **{system: LEAVES - {"runs"} for system in SYSTEMS},
    "callbacks": {"sparsity", "hippocampus", "entropy", "figures", "metrics", "runs", "strategies"},
    "mistakes": set(),
    "parsing": {"mistakes"},
    "cli": {"callbacks", "figures", "mistakes", "parsing", "runs"},
}
OPTIONAL = {
    "flwr",
    "jsonargparse",
    "matplotlib",
    "mlxtend",
    "onnx",
    "onnxscript",
    "pandas",
    "peft",
    "ratinabox",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "timm",
    "torch_pruning",
    "torchvision",
    "wandb",
}

EXTENDED = {  # modules of subclasses of an optional package's classes, imported lazily themselves
    f"continual/adapters/{module}.py": {"peft"} for module in ("bottleneck", "prompt", "ssf", "tuner")
}


def sources():
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def tree(path):
    return ast.parse((PACKAGE / path).read_text(), filename=str(path))


def imports(nodes):
    """Dotted names that import statements among the nodes ask for; a relative one starts with a dot."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def run_on_import(node):
    """The nodes of a module that run when it is imported: no bodies of functions, no TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (n for other in child.orelse for n in (other, *run_on_import(other)))
            continue
        yield child
        yield from run_on_import(child)


def part(path):
    return path.parts[0].removesuffix(".py")


def parts_imported(path):
    names = (name.split(".") for name in imports(ast.walk(tree(path))))
    return {name[1] for name in names if name[0] == "lightning_plasticity" and len(name) > 1}


@pytest.mark.parametrize("path", sources(), ids=str)
def test_arrows_point_one_way(path):
    if part(path) == "__init__":
        assert list(imports(ast.walk(tree(path)))) == []
        return
    assert part(path) in ALLOWED, f"say in ALLOWED what {part(path)} may import"
    assert parts_imported(path) - {part(path)} <= ALLOWED[part(path)]


@pytest.mark.parametrize("path", sources(), ids=str)
def test_imports_are_absolute_and_of_the_one_lightning(path):
    names = list(imports(ast.walk(tree(path))))
    assert [name for name in names if name.startswith((".", "pytorch_lightning"))] == []
    assert [name for name in names if name.split(".")[0] == "lightning"] == [
        name for name in names if name.startswith(("lightning.pytorch", "lightning.fabric"))
    ]


@pytest.mark.parametrize("path", sources(), ids=str)
def test_optional_packages_are_imported_where_they_are_used(path):
    top = {name.split(".")[0] for name in imports(run_on_import(tree(path)))}
    assert top & OPTIONAL <= EXTENDED.get(str(path), set())


@pytest.mark.parametrize(
    "pattern",
    [
        "sparsity/**/*.py",
        "hopfield/*.py",
        "intrinsic/mixture.py",
        "hippocampus/dynamics.py",
        "continual/losses.py",
        "continual/heads.py",
        "continual/aggregation.py",
    ],
)
def test_pure_files_know_nothing_of_lightning(pattern):
    for path in sorted(PACKAGE.glob(pattern)):
        if path.name not in ("module.py", "__init__.py"):
            used = [name for name in imports(ast.walk(ast.parse(path.read_text()))) if "lightning." in name]
            assert [name for name in used if name.startswith("lightning.")] == [], path


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, lightning_plasticity; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_walker_sees_what_it_should():
    module = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "import a.b\n"
        "if TYPE_CHECKING:\n    import hidden\n"
        "else:\n    import shown\n"
        "try:\n    from c import d\nexcept ImportError:\n    pass\n"
        "class K:\n    import inner\n    def f(self):\n        import lazy\n"
        "from . import sibling\n"
    )
    always = {"typing.TYPE_CHECKING", "a.b", "shown", "c.d", "inner", "..sibling"}
    assert set(imports(run_on_import(module))) == always
    assert set(imports(ast.walk(module))) == always | {"hidden", "lazy"}
