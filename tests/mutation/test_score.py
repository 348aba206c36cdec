"""The mutation score runs from a folder of PTX without the DSL, and goes on where it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation import score as score_module
from tests.mutation import texts, verdicts

KERNEL = "nvfp4_repack"
SOME = "ld.global.b64"
# The processes that judge run this too, up to the last lines.
PROGRAM = """
import sys
for name in ("cutlass", "nvidia", "cuda", "pytest"):
    sys.modules[name] = None  # so that importing it fails
from tests.mutation.score import main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ptx")
    texts.write(out, [KERNEL])
    return out


def score(folder: Path, out: Path) -> str:
    program = out.with_name("program.py")
    program.write_text(PROGRAM)
    command: list[str | Path] = [
        sys.executable,
        program,
        "--kernel",
        KERNEL,
        "--cubins",
        folder,
        "--jobs",
        "2",
        "--out",
        out,
    ]
    return subprocess.run(
        [*command, "--only", SOME],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_without_the_dsl_and_where_it_was_stopped(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    tasks = verdicts.tasks_of(folder, KERNEL, SOME)
    mutants = len(tasks) - 1  # and the kernel as it is
    assert 3 < mutants < 30
    assert f"{mutants} of {mutants} mutants" in score(folder, out)

    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["index"] for row in rows} == {task.index for task in tasks}
    rows.sort(key=lambda row: int(row["index"]))
    rows[1]["killed by"], rows[2]["sha256"] = "what the file says", "of another text"
    kept = "".join(json.dumps(row) + "\n" for row in rows[:4])
    out.write_text(kept + json.dumps(rows[4])[:-5])
    said = score(folder, out)
    assert "1  what the file says" in said
    assert f"{mutants} of {mutants} mutants" in said
    assert len(verdicts.known(out)) == len(tasks) + 1


def test_a_sample_is_the_same_each_time(folder: Path) -> None:
    tasks = verdicts.tasks_of(folder, KERNEL)
    sample = score_module.sample(tasks, 20)
    assert sample == score_module.sample(tasks, 20)
    assert sample[0] == tasks[0]
    assert len(set(sample)) == 21
    assert set(sample) < set(tasks)
    assert sample[1:] != tasks[1:21]
    assert score_module.sample(tasks, len(tasks)) == score_module.sample(tasks, None) == tasks


def test_a_kernel_that_fails_as_it_is_proves_nothing(folder: Path, tmp_path: Path) -> None:
    broken, out = tmp_path / "ptx", tmp_path / "verdicts.jsonl"
    broken.mkdir()
    text = texts.read(folder, KERNEL)
    assert "shr.u32" in text
    (broken / f"{KERNEL}.ptx").write_text(text.replace("shr.u32", "shl.b32"))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        score(broken, out)
    assert "prove nothing" in failed.value.stderr


def test_places_are_functions_of_this_project(folder: Path) -> None:
    """The explanations of survivors name them, so they must not depend on where the PTX was made."""
    assert "nvfp4_repack.py:nvfp4_repack" in {m.place for m in verdicts.mutants_of(folder, KERNEL)}


def test_no_ptx(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--build"):
        texts.read(tmp_path, KERNEL)
