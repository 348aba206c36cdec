"""Finds the kernels: asks each package for its variants."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cute_kernels.build.errors import BuildError
from cute_kernels.build.sources import Tree
from cute_kernels.build.variant import Variant

PACKAGES = ("sm80", "sm100", "sm120")
# A cubin runs only on its own major architecture, and one with an "a" on exactly that; so each has its own.
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a")


class Target(NamedTuple):
    """One cubin to build."""

    package: str
    variant: Variant
    arch: str

    @property
    def stem(self) -> str:
        """Path of its files below the output folder, without their endings; unique."""
        return f"{self.arch}/{self.variant.name}"

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.variant.name} ({self.arch})"

    @property
    def module(self) -> str:
        """Module that holds the function that compiles it."""
        function = self.variant.compile
        while isinstance(function, partial):
            function = function.func
        return str(function.__module__)


def collect(packages: Sequence[str] = PACKAGES, archs: Sequence[str] = ARCHS) -> list[Target]:
    """All targets of some packages and architectures, by architecture and name.

    Raises BuildError for an architecture that is not in ARCHS, a package that cannot be imported, and a
    variant whose name is taken or which is offered for an architecture that it does not list.
    """
    for arch in archs:
        if arch not in ARCHS:
            raise BuildError(f"architecture {arch!r} is not supported; supported are {', '.join(ARCHS)}")
    targets: dict[str, Target] = {}
    for package in packages:
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise BuildError(f"kernel package {package!r} cannot be imported: {error}") from error
        for arch in archs:
            for variant in module.variants(arch):
                target = Target(package, variant, arch)
                if arch not in variant.archs:
                    raise BuildError(
                        f"{target.label} is offered for an architecture outside its {variant.archs}"
                    )
                if target.stem in targets:
                    raise BuildError(f"two variants of {arch} are named {variant.name}")
                targets[target.stem] = target
    return sorted(targets.values(), key=lambda target: (ARCHS.index(target.arch), target.variant.name))


def select(targets: Sequence[Target], pattern: str | None) -> list[Target]:
    """Those whose family or name matches the pattern."""
    return [t for t in targets if matches(pattern, t.variant.kernel, t.variant.name)]


def matches(pattern: str | None, family: str, name: str) -> bool:
    """Whether one of them matches a shell pattern; one with no wildcard matches as a substring, None anything."""
    wanted = pattern if pattern and any(c in pattern for c in "*?[") else f"*{pattern or ''}*"
    return fnmatch.fnmatchcase(family, wanted) or fnmatch.fnmatchcase(name, wanted)


def tree(packages: Sequence[str] = PACKAGES) -> Tree:
    """The source tree of the kernel packages and of the library."""
    found = {}
    for package in ("cute_kernels", *packages):
        file = importlib.import_module(package).__file__
        if file is None:
            raise BuildError(f"package {package!r} has no __init__.py")
        found[package] = Path(file).resolve().parent
    return Tree(found)
