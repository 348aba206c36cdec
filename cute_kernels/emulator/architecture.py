"""What the emulated architectures differ in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """`max_shared`: bytes of shared memory that a CTA may have, without the `reserved_shared` at its start."""

    name: str
    major: int
    minor: int
    max_shared: int
    reserved_shared: int
    max_cluster: int
    has_tensor_memory: bool = False


_KB = 1024
_KNOWN = (
    Architecture("sm_80", 8, 0, 163 * _KB, 1 * _KB, 1),
    Architecture("sm_86", 8, 6, 99 * _KB, 1 * _KB, 1),
    Architecture("sm_89", 8, 9, 99 * _KB, 1 * _KB, 1),
    Architecture("sm_90", 9, 0, 227 * _KB, 1 * _KB, 16),
    Architecture("sm_100", 10, 0, 227 * _KB, 1 * _KB, 16, has_tensor_memory=True),
    Architecture("sm_103", 10, 3, 227 * _KB, 1 * _KB, 16, has_tensor_memory=True),
    Architecture("sm_120", 12, 0, 99 * _KB, 1 * _KB, 8),
    Architecture("sm_121", 12, 1, 99 * _KB, 1 * _KB, 8),
)


def find(name: str) -> Architecture:
    """The architecture of a target name such as "sm_100a"; ValueError if it is none of the emulated ones."""
    base = name.rstrip("af")
    for architecture in _KNOWN:
        if architecture.name == base:
            return architecture
    raise ValueError(
        f"architecture {name!r}; emulated are {', '.join(a.name for a in _KNOWN)}, with or without a suffix a or f"
    )


def runs_on(target: str, architecture: Architecture) -> bool:
    """Whether PTX for `target` runs there: plain targets upwards, "a" on its own, "f" in its family."""
    built = find(target)
    if target.endswith("a"):
        return built == architecture
    if target.endswith("f"):
        return built.major == architecture.major and built.minor <= architecture.minor
    return (built.major, built.minor) <= (architecture.major, architecture.minor)
