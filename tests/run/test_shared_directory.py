"""Several processes resume from one directory, which all of them must see."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from support.runs import go, tiny_config

from tempflow_fast.processes import Processes
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.resume import Start, begin

CONFIG = tiny_config(prompts_per_iteration=2, eval_images=2, num_iterations=1, checkpoint_every=1)


class Threads(Processes):
    """Two threads that compare numbers as two processes do."""

    count = 2

    def __init__(self, index: int, barrier: Barrier, said: dict[int, torch.Tensor]) -> None:
        self.index, self._barrier, self._said = index, barrier, said

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        self._said[self.index] = tensor
        self._barrier.wait(10)
        largest = torch.stack(list(self._said.values())).amax(dim=0)
        self._barrier.wait(10)
        return largest


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return go(tmp_path_factory.mktemp("shared") / "run", CONFIG)[0].path


def begun(*paths: Path) -> list[Start | Exception]:
    """How a process starts in each directory."""
    barrier, said = Barrier(len(paths)), {}

    def one(index: int) -> Start | Exception:
        try:
            return begin(RunDirectory(paths[index]), CONFIG, Threads(index, barrier, said))
        except ValueError as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(len(paths))))


def test_all_load_the_checkpoint_that_the_first_one_has_chosen(path):
    assert [start.checkpoint for start in begun(path, path)] == [path / "checkpoints" / "000001"] * 2


def test_a_machine_with_a_directory_of_its_own_is_refused_everywhere(path, tmp_path):
    for error in begun(path, tmp_path):
        assert str(error).startswith("begin: run must be a directory that all machines share, got ")
        assert str(error).endswith("without checkpoint 000001 on one of them")
