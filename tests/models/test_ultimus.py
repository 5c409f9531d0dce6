import math

import torch

from models.ultimus import Ultimus, UltimusBlock


def test_it_has_the_parameters_of_the_course():
    assert sum(p.numel() for p in Ultimus().parameters()) == 25_882


@torch.no_grad()
def test_a_block_weighs_features_of_one_image_at_a_time():
    torch.manual_seed(0)
    block = UltimusBlock(48, 8)
    x = torch.randn(5, 48)
    expected = []
    for row in x:  # one image, one feature at a time
        q, k, v = block.query(row), block.key(row), block.value(row)
        scores = [math.exp(float(q[i] * k[i]) / math.sqrt(8)) for i in range(8)]
        weighted = torch.tensor([scores[i] / sum(scores) * float(v[i]) for i in range(8)])
        expected.append(row + block.out(weighted))
    torch.testing.assert_close(block(x), torch.stack(expected))


def test_the_image_is_pooled_whatever_its_size():
    model = Ultimus(n_classes=7).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model(torch.randn(2, 3, 17, 40)).shape == (2, 7)
