"""A tensor that several products read is cast once, and changes nothing where autocast is off."""

import torch

from models.autocast import in_product_dtype
from models.transformer import Transformer


def test_a_tensor_is_cast_under_autocast_and_left_alone_without():
    x = torch.randn(2, 3, dtype=torch.float32)
    assert in_product_dtype(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert in_product_dtype(x).dtype == torch.bfloat16
        assert torch.equal(in_product_dtype(x), x.to(torch.bfloat16))


def test_the_memory_of_a_transformer_is_cast_once_for_all_decoder_layers():
    model = Transformer(20, 20, d_model=16, n_heads=2, n_encoder_layers=1, n_decoder_layers=2, d_ff=32)
    source = torch.tensor([[4, 5, 3]])
    assert model.encode(source).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encode(source).dtype == torch.bfloat16
