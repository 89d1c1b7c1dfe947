"""The files that say how to install agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"pytorch": "torch"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", CONDA_NAMES.get(name, name)).lower()


def required(*extras: str) -> dict[str, Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonical(Requirement(line).name): Requirement(line) for line in lines}


def test_environment_yml_has_the_same_bounds_as_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    lines += next(line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    listed = {}
    for line in lines:
        if line in {"pip", "--editable ."}:
            continue
        requirement = Requirement(line)
        listed[canonical(requirement.name)] = str(requirement.specifier)
    assert listed.pop("python") == PROJECT["requires-python"]
    assert listed == {name: str(r.specifier) for name, r in required("minilm", "judges", "test").items()}


def constraints() -> dict[str, Version]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonical(name)] = Version(version)
    return pins


@pytest.mark.parametrize("extra", [None, "minilm", "judges", "test", "dev"])
def test_constraints_pin_every_requirement_within_its_bounds(extra: str | None):
    pins = constraints()
    for name, requirement in required(*([extra] if extra else [])).items():
        assert name in pins, f"{name} has no pin in constraints.txt"
        assert pins[name] in requirement.specifier


def test_torch_is_pinned_where_the_models_were_made():
    assert constraints()["torch"] == Version("2.13.0")


def test_the_two_commands_stand_first_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lab, test = readme.index("make lab"), readme.index("make test")
    assert lab < test < readme.index("pip install")


def test_no_path_of_one_machine_is_in_the_project():
    stray = re.compile(r"(?<![\w.~])/(?:work|home|root|Users)/\w+/")
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(ROOT / "workbench").rglob("*.py"),
        ROOT / "pyproject.toml",
    ]:
        assert not stray.search(path.read_text(encoding="utf-8")), path
