"""What this machine offers to those who would leave zeros out: looked up on it, not guessed."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from secateur.hardware.runtimes import RUNTIMES
from secateur.hardware.runtimes.deepsparse import python
from secateur.hardware.runtimes.deepsparse import version as version_in


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found on a machine.

    Attributes:
        cpu: its name.
        flags: of its CPU as Linux lists them; None = the system does not tell.
        versions: of the installed runtimes, by `Runtime.package`.
        settings: names of the settings that an installed runtime has here, by `Runtime.package`;
            a runtime without an entry was not asked.
        quantized: engines of PyTorch's INT8 kernels.
        cuda: compute capability of the first GPU that PyTorch can use; None = no such GPU.
    """

    cpu: str = ""
    flags: frozenset[str] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, frozenset[str]] = field(default_factory=dict)
    quantized: frozenset[str] = frozenset()
    cuda: tuple[int, int] | None = None

    @classmethod
    @functools.cache
    def here(cls) -> Machine:
        """This machine, asked once."""
        name, flags = read_cpu(Path("/proc/cpuinfo"))
        versions = installed_versions()
        return cls(
            cpu=name or platform.processor() or platform.machine(),
            flags=flags,
            versions=versions,
            settings=_settings(versions),
            quantized=frozenset(torch.backends.quantized.supported_engines),
            cuda=torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        )


def installed_versions() -> dict[str, str]:
    """Versions of the runtimes that are installed, by the keys of `Machine.versions`."""
    found = {}
    for runtime in RUNTIMES:
        for name in runtime.distributions:
            try:
                version = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
            found[runtime.package] = version if name == runtime.package else f"{name} {version}"
            break
    if python() and version_in(python()):
        found["deepsparse"] = version_in(python())
    return found


def _settings(versions: Mapping[str, str]) -> dict[str, frozenset[str]]:
    asked = {of.package: of.settings() for of in RUNTIMES if of.settings and of.package in versions}
    return {package: names for package, names in asked.items() if names is not None}


def read_cpu(path: Path) -> tuple[str, frozenset[str] | None]:
    """The CPU's name and flags as Linux lists them; "" and None where it does not."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return "", None
    held = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in held.items()}
    flags = facts.get("flags")
    return facts.get("model name", ""), None if flags is None else frozenset(flags.split())
