"""The best translations of one sentence that a beam search finds, with their probabilities.

For a person who looks at one sentence: a plain loop over hypotheses, by the rules of `models.decoding.beam_search`,
which keeps the best alone and is made for whole test sets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoding import LengthNormalization, SpecialTokens, length_bound, penalties


@dataclass(frozen=True)
class Hypothesis:
    """A translation without BOS and EOS, its log-probability, and that over its length: what it is ranked by."""

    tokens: list[int]
    log_prob: float
    score: float


@torch.no_grad()
def alternatives(
    model,
    source: Tensor,
    special: SpecialTokens,
    beam_size: int = 5,
    length_penalty: float = 1.0,
    length_normalization: LengthNormalization = "power",
) -> list[Hypothesis]:
    """Up to `beam_size` translations of one sentence, source (1, S), the best first; it is that of `beam_search`.

    Where none ends within the bound of its length, the best that was going on, alone.
    """
    state = model.begin_decoding(source, True).with_beams(beam_size)
    totals = torch.full((beam_size,), -torch.inf, device=source.device)
    totals[0] = 0.0  # all begin alike: let one of them branch
    tokens = torch.full((beam_size,), special.begin, device=source.device)
    prefixes: list[list[int]] = [[]] * beam_size
    finished: list[Hypothesis] = []
    for length in range(1, length_bound(source.shape[1]) + 1):
        end_penalty, going_penalty = penalties(length, length_penalty, length_normalization)
        logits, state = model.decode_step(tokens, state)
        logits = logits.float()
        logits[:, [special.pad, special.begin]] = -torch.inf
        log_probs = (totals[:, None] + logits.log_softmax(-1)).flatten()
        best = log_probs.topk(2 * beam_size)  # of which at most beam_size end here

        going = []
        for rank, (total, candidate) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            parent, word = divmod(candidate, logits.shape[1])
            if word != special.end:
                going.append((total, parent, word))
            elif rank < beam_size and total > -torch.inf:
                finished.append(Hypothesis(prefixes[parent], total, total / end_penalty))
        going = going[:beam_size]
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:beam_size]

        prefixes = [[*prefixes[parent], word] for _, parent, word in going]
        if len(finished) == beam_size and going[0][0] / going_penalty <= finished[-1].score:
            break
        totals = torch.tensor([total for total, _, _ in going], device=source.device)
        tokens = torch.tensor([word for _, _, word in going], device=source.device)
        state = state.select(torch.tensor([parent for _, parent, _ in going], device=source.device), True)
    return finished or [Hypothesis(prefixes[0], going[0][0], going[0][0] / going_penalty)]
