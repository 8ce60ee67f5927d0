"""The constraints files that the environments are made from fit what pyproject.toml asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(*groups: list[str]) -> list[Requirement]:
    asked = [Requirement(text) for group in groups for text in group]
    return [requirement for requirement in asked if requirement.name != "secateur"]


RUNTIME = requirements(
    PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()
)
TOOLS = requirements(PROJECT["dependency-groups"]["dev"])


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / "scripts" / name).read_text(encoding="utf-8").splitlines()
    held = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name.lower(): pin for pin in held if pin.marker is None or pin.marker.evaluate()}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_every_package_asked_for_is_pinned_to_a_version_that_is_allowed(name: str) -> None:
    held = pins(name)
    for requirement in [*RUNTIME, *TOOLS]:
        if requirement.marker is None or requirement.marker.evaluate():
            (pin,) = held[requirement.name.lower()].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), f"{requirement}: run scripts/lock"


def test_the_oldest_environment_has_the_oldest_versions_claimed() -> None:
    held = pins("constraints-oldest.txt")
    for requirement in RUNTIME:
        (least,) = requirement.specifier
        assert least.operator == ">="
        if requirement.marker is None or requirement.marker.evaluate():
            (pin,) = held[requirement.name.lower()].specifier
            claimed, pinned = Version(least.version), Version(pin.version)
            assert pinned.release[: len(claimed.release)] == claimed.release, str(requirement)
