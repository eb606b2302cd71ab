"""The packages of m2d/ import one way, are small, and leave nothing but published names beside them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import m2d

ROOT = Path(m2d.__file__).parent
#: Each package imports from earlier rows, and from itself. Packages of one row do not import each other.
LAYERS = [
    {"utils"},
    {"audio", "models"},
    {"data", "checkpoint"},
    {"inference", "run"},
    {"evaluation", "adapters", "share"},
    {"train"},
    {"finetune"},
    {"report"},
    {"cli"},
]
MOST_MODULES = 16  # of a package, those of its own packages aside
SHIMS = {"embed", "engine_pretrain_m2d", "models_mae", "pos_embed", "runtime_audio", "tag"}


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")


def imported_packages(path: Path) -> set[str]:
    """Packages (or modules) of m2d/ that a module imports anywhere in its text."""
    package = path.relative_to(ROOT.parent).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            names = [*base, *(node.module.split(".") if node.module else ())]
            found |= {tuple([*names, alias.name][:2]) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")[:2]) for alias in node.names}
    return {name for root, *rest in found if root == "m2d" for name in rest}


@pytest.mark.parametrize("level", range(len(LAYERS)))
def test_packages_import_one_way(level):
    below = set().union(*LAYERS[:level], {"__version__"})
    for package in LAYERS[level]:
        for path in modules(package):
            upward = imported_packages(path) - below - {package}
            assert not upward, f"{path} imports {', '.join(upward)}"


def test_every_package_has_its_layer():
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} == set().union(*LAYERS)


def test_only_published_names_are_beside_the_packages():
    assert {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"} == SHIMS


@pytest.mark.parametrize("package", sorted(set().union(*LAYERS)))
def test_packages_and_modules_are_small(package):
    paths = modules(package)
    assert 0 < len([path for path in paths if path.parent == ROOT / package]) <= MOST_MODULES
    # A link leads to examples/, whose portable model is one file by purpose.
    assert not [path for path in paths if not path.is_symlink() and len(path.read_text().splitlines()) >= 420]
    assert not [path for path in (ROOT / package).rglob("__init__.py") if path.read_text()]


def test_a_start_takes_no_compiler_and_no_plots():
    """What takes seconds to import, and few runs need: PyTorch's compiler and sharded tensors, torchvision, timm, plots."""
    code = """
import importlib, sys
import m2d.inference.embed
heavy = "torch._dynamo torch._inductor torch.distributed.tensor sympy torchvision timm transformers matplotlib sklearn pandas"
for program in ("m2d.inference.embed", "m2d.inference.tag", "m2d.cli.export", "train_audio", "clap.train_clap"):
    importlib.import_module(program)
    print(program, *set(heavy.split()) & set(sys.modules))
m2d.inference.embed.RuntimeM2D("tiny").get_scene_embeddings(sys.modules["torch"].zeros(1, 16000))
print("encoding", *set(heavy.split()) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and not [line for line in lines if " " in line], lines
