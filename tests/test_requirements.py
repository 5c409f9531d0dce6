"""Ranges for people's machines, and the one set that is tested, which pins each package within its range."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILES = ["requirements.txt", "requirements-dev.txt"]


def requirements(name: str) -> list[Requirement]:
    lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


def pinned() -> dict[str, str]:
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in requirements("constraints.txt")
    }


def test_constraints_are_exact_and_of_no_build():
    for pin in requirements("constraints.txt"):
        assert [each.operator for each in pin.specifier] == ["=="], pin
        assert "+" not in str(pin.specifier), f"{pin}: +cpu would keep a GPU's build of torch away"


@pytest.mark.parametrize("file", FILES)
def test_what_is_required_is_a_range_and_is_pinned_within_it(file):
    for requirement in requirements(file):
        operators = {each.operator for each in requirement.specifier}
        assert operators == {">=", "<"}, f"{requirement}: a range leaves what a machine has"
        version = pinned()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, but constraints.txt has {version}"


def test_every_install_of_make_is_of_the_pinned_set_and_torch_comes_first():
    recipes = (ROOT / "Makefile").read_text()
    installs = re.findall(r"\$\(BIN\)/pip install (.+)", recipes)
    assert installs[0] == "-q -c constraints.txt torch"
    assert all("-c constraints.txt" in install for install in installs)


def test_no_file_names_an_index_of_cpu_builds():
    for name in [*FILES, "requirements-optional.txt", "constraints.txt", "Makefile"]:
        assert "index-url" not in (ROOT / name).read_text()
