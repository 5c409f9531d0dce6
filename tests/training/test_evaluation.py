import itertools

import pytest
import torch
from accelerate import Accelerator
from two_processes import on_processes

from training.evaluation import row_of_each_example

SIZES = [(1, 3), (2, 3), (3, 3), (4, 3), (10, 3), (11, 2), (5, 100)]  # examples, examples of a batch


def rows_of(accelerator: Accelerator, n_examples: int, batch_size: int) -> tuple:
    """The rows of each example, and which examples this process was asked for."""
    asked = []

    def compute(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asked.append(ids.tolist())
        values = 0.5 + ids.float()
        return values, torch.stack([ids, ids**2], dim=1), values[:, None, None].expand(-1, 2, 3)

    return row_of_each_example(accelerator, n_examples, batch_size, compute), asked


def rows_of_all_sizes(accelerator: Accelerator) -> list:
    return [rows_of(accelerator, *sizes) for sizes in SIZES]


def check(tables: tuple[torch.Tensor, ...], n_examples: int) -> None:
    values, pairs, maps = tables
    ids = torch.arange(n_examples)
    assert torch.equal(values, ids + 0.5)
    assert torch.equal(pairs, torch.stack([ids, ids**2], dim=1)) and pairs.dtype == torch.int64
    assert maps.shape == (n_examples, 2, 3) and torch.equal(maps[:, 1, 2], values)


@pytest.mark.parametrize("sizes", SIZES)
def test_each_example_has_its_row_in_the_order_of_the_data(fresh_accelerate, sizes):
    tables, asked = rows_of(Accelerator(cpu=True), *sizes)
    check(tables, sizes[0])
    assert list(itertools.chain(*asked)) == list(range(sizes[0])) and max(map(len, asked)) <= sizes[1]


@pytest.mark.parametrize("n_processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_share_the_examples_and_all_know_all_rows(fresh_accelerate, tmp_path, n_processes):
    """Also where there are fewer batches than processes: one computes for the shapes, and counts nothing."""
    found = on_processes(n_processes, rows_of_all_sizes, tmp_path)
    alone = [rows_of(Accelerator(cpu=True), *sizes) for sizes in SIZES]
    for index, (n_examples, batch_size) in enumerate(SIZES):
        n_batches = -(-n_examples // batch_size)
        counted = []
        for rank, results in enumerate(found):
            tables, asked = results[index]
            check(tables, n_examples)
            for table, expected in zip(tables, alone[index][0], strict=True):
                assert torch.equal(table, expected)
            assert len(asked) == max(1, len(range(rank, n_batches, n_processes)))
            counted += asked if rank < n_batches else []
        assert sorted(itertools.chain(*counted)) == list(range(n_examples))  # each once
        assert sorted(counted) == sorted(alone[index][1])  # in the batches of one process


def test_rows_that_are_too_few_are_an_error(fresh_accelerate):
    with pytest.raises(RuntimeError):
        row_of_each_example(Accelerator(cpu=True), 6, 3, lambda ids: (ids[:2].float(),))
