import torch

from data.images.epoch_order import plan_epoch


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
