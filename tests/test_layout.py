"""The checkout holds what the design says, and nothing else."""

import subprocess

import pytest

FOLDERS = {".ci", "callbacks", "lightning_plasticity", "recipes", "tests"}
FILES = {
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "pyproject.toml",
}
SITE = {"docs"}  # only as a real site: a folder of documents is none
TESTS_OF_MANY_PARTS = {"benchmarks", "distributed", "recipes", "sweeps", "trainer"}


@pytest.fixture(scope="module")
def files(repository):
    """Every file that git does not ignore, committed or not, relative to the root."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.splitlines() if (path := repository / name).exists()]


def test_the_top_level_holds_exactly_what_the_design_says(repository, files):
    top = {path.relative_to(repository).parts[0] for path in files}
    assert top - SITE == FOLDERS | FILES
    assert (repository / "docs" / "mkdocs.yml").exists() == bool(top & SITE)


def test_presets_and_recipes_are_no_packages(repository):
    assert list(repository.glob("callbacks/**/__init__.py")) == []
    assert list(repository.glob("recipes/**/__init__.py")) == []


def test_presets_are_yaml_and_the_readme_says_where_the_code_is(repository, files):
    presets = [path for path in files if path.parent == repository / "callbacks"]
    assert {path.suffix for path in presets} == {".yaml", ".md"}
    readme = (repository / "callbacks" / "README.md").read_text()
    assert "lightning_plasticity/callbacks" in readme.splitlines()[0]
    missing = [path.name for path in presets if path.suffix == ".yaml" and f"({path.name})" not in readme]
    assert missing == []


def test_every_recipe_is_short_and_has_its_yaml(repository):
    for script in sorted((repository / "recipes").glob("*.py")):
        if '__name__ == "__main__"' not in script.read_text():
            continue  # a part of a recipe
        assert script.with_suffix(".yaml").is_file(), script
        assert len(script.read_text().splitlines()) <= 80, script


def test_the_tests_mirror_the_package(repository):
    parts = {path.name for path in (repository / "lightning_plasticity").iterdir() if path.is_dir()}
    folders = {path.parent.name for path in (repository / "tests").glob("*/test_*.py")}
    assert folders - TESTS_OF_MANY_PARTS <= parts


def test_the_readme_has_the_two_commands_that_ci_runs(repository):
    readme = (repository / "README.md").read_text()
    commands = {
        "main": "pip install -e '.[recipes]' && python recipes/sparse_training.py fit",
        "tests": "pip install -e '.[test]' && pytest -n 2",
    }
    for name, command in commands.items():
        assert f"<!-- command: {name} -->\n```bash\n{command}\n```\n" in readme
