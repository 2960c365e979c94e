import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_code_is_packaged():
    mapped = PROJECT["tool"]["setuptools"]["package-dir"]
    folders = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in mapped.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_zoo_and_no_generic_names(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ditprune"}
    assert "ditprune/callbacks/prune.py" in names
    models = [n for n in names if n.startswith("ditprune/zoo/models/")]
    assert any(name.endswith("digits-dit/transformer/config.json") for name in models)
    assert sum(zipfile.ZipFile(wheel).getinfo(name).file_size for name in models) < 25e6


@pytest.mark.slow
def test_the_wheel_works_from_another_directory(wheel, tmp_path):
    """Unpacked, first on the path, and far from the checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import ditprune, ditprune.callbacks, ditprune.datamodules;"
        "from ditprune.zoo import load_pretrained;"
        "print(ditprune.__file__, load_pretrained('digits-dit').transformer.num_parameters())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "site") in out.stdout


def test_the_licence_and_version_are_stated():
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()
