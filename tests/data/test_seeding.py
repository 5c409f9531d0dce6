import torch

from data.seeding import seeded_generator

CPU = torch.device("cpu")


def test_a_key_gives_one_stream_and_others_give_others():
    streams = {
        key: torch.rand(4, generator=seeded_generator(CPU, *key))
        for key in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1), (0, 1, 3)]
    }
    assert torch.equal(streams[0, 1, 2], torch.rand(4, generator=seeded_generator(CPU, 0, 1, 2)))
    assert len({tuple(values.tolist()) for values in streams.values()}) == len(streams)


def test_neighbouring_keys_are_uncorrelated():
    normals = torch.stack([torch.randn(2000, generator=seeded_generator(CPU, 7, i)) for i in range(20)])
    off_diagonal = torch.corrcoef(normals)[~torch.eye(20, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 0.12  # five standard deviations


def test_the_global_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    seeded_generator(CPU, 1)
    assert torch.equal(torch.rand(2), expected)
