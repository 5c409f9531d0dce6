import itertools
import math

import pytest
import torch

from models.alternatives import alternatives
from models.decoding import SpecialTokens, beam_search, length_bound
from models.lstm import Seq2SeqLSTM
from models.transformer import Transformer

SPECIAL = SpecialTokens()


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def model(request) -> torch.nn.Module:
    torch.manual_seed(3)
    if request.param == "lstm":
        model: torch.nn.Module = Seq2SeqLSTM(30, 30, embedding_dim=24, hidden_size=32)
    else:
        model = Transformer(30, 30, d_model=32, n_heads=4, n_encoder_layers=1, n_decoder_layers=1, d_ff=64)
    for parameter in model.parameters():
        parameter.data *= 2.0  # untrained logits are near uniform: make the choices clear ones
    return model.eval()


def sources() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 30, (1, n), generator=generator) for n in (1, 2, 3, 5, 8, 8, 8, 8)]


@pytest.mark.parametrize("normalization", ["power", "gnmt"])
@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_the_first_is_that_of_the_beam_search(model, beam_size, normalization):
    options = {"beam_size": beam_size, "length_penalty": 0.8, "length_normalization": normalization}
    for source in sources():
        found = alternatives(model, source, SPECIAL, **options)
        assert [found[0].tokens] == beam_search(model, source, SPECIAL, **options)
        assert len(found) <= beam_size and len({tuple(other.tokens) for other in found}) == len(found)
        assert [other.score for other in found] == sorted((other.score for other in found), reverse=True)


@torch.no_grad()
def test_the_log_probability_is_that_of_the_tokens_and_the_end(model):
    compared = 0
    for source in sources():
        for found in alternatives(model, source, SPECIAL, beam_size=4):
            if len(found.tokens) == length_bound(source.shape[1]):  # cut there, without an end
                continue
            state, expected = model.begin_decoding(source, True), 0.0
            for given, following in itertools.pairwise([SPECIAL.begin, *found.tokens, SPECIAL.end]):
                logits, state = model.decode_step(torch.tensor([given]), state)
                logits[:, [SPECIAL.pad, SPECIAL.begin]] = -torch.inf
                expected += float(logits.log_softmax(-1)[0, following])
            assert math.isclose(found.log_prob, expected, rel_tol=1e-4)
            compared += 1
    assert compared > 3
