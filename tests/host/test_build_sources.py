"""Which files a kernel's hash covers, on a made-up project."""

from __future__ import annotations

from pathlib import Path

import pytest

from cute_kernels.build.errors import BuildError
from cute_kernels.build.sources import Tree

FILES = {
    "lib/__init__.py": "from lib.version import VERSION\ndef lazy():\n    from lib import heavy\n"
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .typed import T\n",
    "lib/typed.py": "",
    "lib/version.py": "VERSION = 1\n",
    "lib/heavy.py": "import nothing_of_ours\n",
    "lib/device/__init__.py": "",
    "lib/device/ring.py": "from . import tiles\n",
    "lib/device/tiles.py": "import lib.order as order\n",
    "lib/device/unused.py": "",
    "lib/order.py": "",
    "arch/__init__.py": "def variants():\n    from arch import gemm, other\n",
    "arch/gemm.py": "import cutlass\nfrom arch.shape import S\ndef f():\n    from lib.device import ring\n",
    "arch/shape.py": "",
    "arch/other.py": "from lib import lazy\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Tree({"lib": tmp_path / "lib", "arch": tmp_path / "arch"})


def test_closure_follows_imports_but_not_neighbours(tree: Tree) -> None:
    expected = (
        "arch arch.gemm arch.shape lib lib.device lib.device.ring lib.device.tiles lib.order lib.version"
    )
    assert sorted(tree.closure("arch.gemm")) == expected.split()


def test_closure_of_what_an_init_defines_follows_all_of_it(tree: Tree) -> None:
    assert sorted(tree.closure("arch.other")) == ["arch", "arch.other", "lib", "lib.heavy", "lib.version"]


def test_closure_of_a_package_as_root_takes_in_its_kernels(tree: Tree) -> None:
    assert {"arch.gemm", "arch.other", "lib.heavy", "lib.order"} < set(tree.closure("arch"))


@pytest.mark.parametrize("name", sorted(FILES))
def test_digest_changes_exactly_with_the_closure(tree: Tree, name: str) -> None:
    before = tree.digest("arch.gemm")
    file = tree.packages["lib"].parent / name
    file.write_text(file.read_text() + "# a remark\n")
    fresh = Tree(tree.packages)
    assert (fresh.digest("arch.gemm") != before) == (file in tree.closure("arch.gemm").values())


def test_digest_does_not_depend_on_the_place(tree: Tree, tmp_path: Path) -> None:
    before = tree.digest("arch.gemm")
    (tmp_path / "lib").rename(tmp_path / "moved")
    assert Tree(tree.packages | {"lib": tmp_path / "moved"}).digest("arch.gemm") == before


def test_a_function_outside_the_packages_is_refused(tree: Tree) -> None:
    with pytest.raises(BuildError, match=r"lies in elsewhere\.kernel, outside the packages"):
        tree.digest("elsewhere.kernel")
