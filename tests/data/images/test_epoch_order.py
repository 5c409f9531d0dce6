import torch

from data.images.epoch_order import plan_epoch, plan_seeded_epoch


def test_an_epoch_shows_each_example_once_in_batches_of_like_size():
    for n, size in ((1000, 100), (1003, 100), (7, 3), (5, 100)):
        updates = plan_epoch(n, size, seed=3, epoch=2, device=torch.device("cpu"))
        sizes = [len(ids) for ids in updates]
        assert sorted(torch.cat(updates).tolist()) == list(range(n))
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    first, again = (torch.cat(plan_epoch(50, 10, 3, e, torch.device("cpu"))) for e in (0, 0))
    other_epoch = torch.cat(plan_epoch(50, 10, 3, 1, torch.device("cpu")))
    other_seed = torch.cat(plan_epoch(50, 10, 4, 0, torch.device("cpu")))
    assert torch.equal(first, again)
    assert not torch.equal(first, other_epoch) and not torch.equal(first, other_seed)


def test_each_update_has_a_generator_of_its_own_that_nothing_drawn_before_moves():
    def drawn(seed, epoch, stream, first=0):
        plan = plan_seeded_epoch(10, 4, seed, epoch, torch.device("cpu"), stream)
        assert all(torch.equal(a, b) for (a, _), b in zip(plan, plan_epoch(10, 4, seed, epoch, "cpu"), strict=True))
        return [torch.rand(2, generator=generator).tolist() for _, generator in plan[first:]]

    numbers = drawn(0, 0, 0)
    assert drawn(0, 0, 0) == numbers and drawn(0, 0, 0, first=2) == numbers[2:]
    others = drawn(1, 0, 0) + drawn(0, 1, 0) + drawn(0, 0, 1)
    assert len({tuple(pair) for pair in numbers + others}) == 12
