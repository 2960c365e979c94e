"""The import rules of the architecture, executed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"ditprune": "ditprune", "ditprune.callbacks": "callbacks",
           "ditprune.datamodules": "datamodules"}  # fmt: skip
LIGHTNING = ("lightning", "pytorch_lightning")
SOURCES = sorted(path for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield str(node.module)


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def offenders(folder: str, *banned: str, spared: tuple[str, ...] = ()) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"there is no {folder}"
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        if path.relative_to(ROOT / folder).parts[0] not in spared
        for module in imports(path)
        if below(module, *banned)
    ]


@pytest.mark.parametrize(
    ("folder", "banned"),
    [
        ("ditprune", LIGHTNING),
        ("ditprune", ("ditprune.callbacks", "ditprune.datamodules")),
    ],
)
def test_the_core_knows_nothing_of_lightning(folder, banned):
    assert offenders(folder, *banned, spared=("lit", "cli.py")) == []


@pytest.mark.parametrize(
    ("folder", "banned"),
    [
        ("ditprune/saliency", ("ditprune.granularity", "ditprune.families", "ditprune.masks")),
        ("ditprune/granularity", ("ditprune.saliency", "ditprune.families", "ditprune.masks")),
        ("ditprune/budget", ("ditprune.families", "ditprune.masks", "ditprune.pipeline")),
        ("ditprune/repair", ("ditprune.families", "ditprune.masks", "ditprune.pipeline",
                             "ditprune.saliency", "ditprune.budget")),
        ("callbacks", ("ditprune.datamodules",)),
        ("datamodules", ("ditprune.callbacks",)),
        (
            "ditprune/metrics",
            ("ditprune.saliency", "ditprune.granularity", "ditprune.masks", "ditprune.pipeline",
             "ditprune.targets", "ditprune.families", "ditprune.activations"),
        ),
    ],
)  # fmt: skip
def test_parts_that_are_decided_separately_do_not_know_each_other(folder, banned):
    assert offenders(folder, *banned) == []


@pytest.mark.parametrize("folder", [*FOLDERS.values(), "tests"])
def test_the_bare_names_that_load_a_second_copy_are_never_imported(folder):
    assert offenders(folder, "callbacks", "datamodules") == []


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_tests_and_configs_are_not_imported(folder):
    assert offenders(folder, "tests", "configs", "contracts") == []


def test_importing_ditprune_does_not_load_lightning():
    code = "import ditprune, sys; print([m for m in sys.modules if 'lightning.pytorch' in m])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_there_is_no_drawer_for_things_without_a_name(path):
    assert path.stem not in {"utils", "helpers", "common", "misc", "registry", "manager"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "callbacks").glob("*.py")), ids=lambda path: path.stem
)
def test_a_callback_decides_when_and_never_loops_over_layers(path):
    source = path.read_text()
    assert ".weight" not in source
    assert "named_modules" not in source
    assert "for target" not in source


def test_nothing_is_unpickled():
    for path in SOURCES:
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        for call in calls:
            name = ast.unparse(call.func)
            assert name not in {"pickle.load", "pickle.loads"}, path
            if name == "torch.load":
                assert "weights_only=True" in ast.unparse(call), path
