"""Which source files a compiled kernel depends on, and their hash, found without importing any of them."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cute_kernels.build.errors import EXTRA, BuildError

DSL = "nvidia-cutlass-dsl"
DSL_PARTS = (DSL, f"{DSL}-libs-base", f"{DSL}-libs-core", f"{DSL}-libs-cu13")


class Imports(NamedTuple):
    """Names that a file imports: as soon as it is imported itself, and anywhere in it."""

    at_import: frozenset[str]
    anywhere: frozenset[str]


class Tree:
    """The project packages and where they lie; finds what a module in them imports, from the text alone.

    packages: top-level package -> its folder. Imports that leave these packages are not followed.
    """

    def __init__(self, packages: dict[str, Path]) -> None:
        self.packages = packages
        self._digests: dict[Path, str] = {}
        self._imports: dict[Path, Imports] = {}

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders that the packages lie in."""
        return tuple(sorted({folder.parent for folder in self.packages.values()}))

    def file(self, module: str) -> Path | None:
        """The source file of a module of the project; None for anything else."""
        top, *rest = module.split(".")
        if top not in self.packages:
            return None
        stem = self.packages[top].joinpath(*rest)
        for path in (stem / "__init__.py", stem.parent / f"{stem.name}.py"):
            if path.is_file() and (rest or path.name == "__init__.py"):
                return path
        return None

    def closure(self, *roots: str) -> dict[str, Path]:
        """Modules that importing and running `roots` may load, and their files.

        Imports inside functions count too; but where a package is imported only on the way to a module in it,
        just what its `__init__` imports at once: inside `variants` it names all its kernels, and none of them
        needs its neighbours.
        """
        found: dict[str, Path] = {}
        followed: set[str] = set()
        todo = [(root, True) for root in roots]
        while todo:
            module, in_full = todo.pop()
            path = self.file(module)
            if path is None or module in followed or (module in found and not in_full):
                continue
            found[module] = path
            if in_full:
                followed.add(module)
            if path not in self._imports:
                self._imports[path] = imports_of(path, module)
            imports = self._imports[path]
            for name in imports.anywhere if in_full else imports.at_import:
                if self.file(name) is not None:
                    todo.append((name, self.is_plain(name)))
                else:  # something that the module defines, so that all of it may run
                    todo.append((name.rpartition(".")[0], True))
            if "." in module:
                todo.append((module.rpartition(".")[0], False))
        return found

    def is_plain(self, module: str) -> bool:
        """Whether the module is a file rather than a package's `__init__`."""
        path = self.file(module)
        return path is not None and path.name != "__init__.py"

    def digest(self, *roots: str) -> str:
        """Hash of the names and the bytes of every file in the closure of `roots`."""
        for root in roots:
            if self.file(root) is None:
                raise BuildError(
                    f"the compile function lies in {root}, outside the packages {list(self.packages)}"
                )
        hasher = hashlib.sha256()
        for module, path in sorted(self.closure(*roots).items()):
            if path not in self._digests:
                self._digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            hasher.update(f"{module} {self._digests[path]}\n".encode())
        return hasher.hexdigest()


def imports_of(path: Path, module: str) -> Imports:
    """What one source file imports, names made absolute; each with the packages that hold it."""
    tree = ast.parse(path.read_bytes(), str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    anywhere = {name for node in nodes_that_run(tree, later=True) for name in names_in(node, package)}
    at_import = {name for node in nodes_that_run(tree, later=False) for name in names_in(node, package)}
    return Imports(frozenset(at_import), frozenset(anywhere))


def nodes_that_run(node: ast.AST, later: bool) -> Iterator[ast.AST]:
    """All nodes below one that run when the file is imported, or `later`, inside functions; those under
    `if TYPE_CHECKING` never do."""
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        if later or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from nodes_that_run(child, later)


def names_in(node: ast.AST, package: str) -> list[str]:
    """Absolute module names of one import statement; [] for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parts = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parts, base] if base else parts)
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


@cache
def dsl_versions() -> tuple[str, ...]:
    """Versions of the DSL's distributions; raises BuildError where the DSL or its cu13 part is missing."""
    try:
        return tuple(f"{part}=={importlib.metadata.version(part)}" for part in DSL_PARTS)
    except importlib.metadata.PackageNotFoundError as error:
        raise BuildError(f"{error.name} is not installed; {EXTRA}") from None


def dsl_version() -> str:
    """Version of the DSL itself, e.g. "4.8.1"."""
    return dsl_versions()[0].partition("==")[2]
