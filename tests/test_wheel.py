"""What a wheel puts into an environment: one package, typed and licensed."""

import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    """A wheel built from the checkout, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(repository)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_installed_in_a_clean_place_it_contributes_exactly_one_package(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*install, "--target", str(tmp_path), str(wheel)], check=True, capture_output=True)
    names = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"lightning_plasticity"}
    code = "import sys; sys.path.insert(0, sys.argv[1]); import lightning_plasticity as p; print(p.__file__)"
    run = [sys.executable, "-S", "-c", code, str(tmp_path)]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "lightning_plasticity" / "__init__.py")


def test_it_holds_every_source_file_the_type_marker_and_the_licence(wheel, repository):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {str(path.relative_to(repository)) for path in repository.glob("lightning_plasticity/**/*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert "lightning_plasticity/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
