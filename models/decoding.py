"""Greedy search, beam search and sampling over any sequence-to-sequence model.

The model gives `begin_decoding(source, use_cache) -> state`, `decode_step(tokens, state) -> (logits, state)`
and a state with `select(rows, same_sources)`. B sentences, K beams, V words. Each sentence has a length bound
of its own and leaves the batch when it is done, so its output does not depend on its neighbours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that steer decoding."""

    pad: int = 0
    unknown: int = 1
    begin: int = 2
    end: int = 3


def length_bounds(source: Tensor, pad_id: int) -> Tensor:
    """The most tokens, EOS included, that the translation of each row of source (B, S) may have: (B,)."""
    return 2 * (source != pad_id).sum(1) + 10


def _next_log_probs(model, tokens: Tensor, state, special: SpecialTokens) -> tuple[Tensor, object]:
    logits, state = model.decode_step(tokens, state)
    logits = logits.float()
    logits[:, [special.pad, special.begin]] = -torch.inf
    return logits.log_softmax(-1), state


@torch.no_grad()
def _one_token_at_a_time(model, source, choose, special, use_cache) -> list[list[int]]:
    """Extend each row by `choose(log_probs (N, V), rows (N,)) -> tokens (N,)` until EOS or its bound."""
    bounds = length_bounds(source, special.pad)
    rows = torch.arange(source.shape[0], device=source.device)
    state = model.begin_decoding(source, use_cache)
    tokens = torch.full_like(rows, special.begin)
    outputs: list[list[int]] = [[] for _ in range(source.shape[0])]
    for length in range(1, int(bounds.max()) + 1):
        log_probs, state = _next_log_probs(model, tokens, state, special)
        tokens = choose(log_probs, rows)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if token != special.end:
                outputs[row].append(token)
        going = (tokens != special.end) & (bounds[rows] > length)
        if not going.all():
            kept = going.nonzero()[:, 0]
            if kept.numel() == 0:
                break
            rows, tokens, state = rows[kept], tokens[kept], state.select(kept)
    return outputs


def greedy_search(model, source: Tensor, special: SpecialTokens, use_cache: bool = True) -> list[list[int]]:
    """The likeliest token at each position: source (B, S) -> B lists of token ids without BOS and EOS."""
    return _one_token_at_a_time(model, source, lambda log_probs, _: log_probs.argmax(-1), special, use_cache)


def sample(
    model,
    source: Tensor,
    special: SpecialTokens,
    generators: list[torch.Generator],
    temperature: float = 1.0,
    top_k: int = 0,
    use_cache: bool = True,
) -> list[list[int]]:
    """Draw each token from the model: source (B, S) -> B lists of token ids without BOS and EOS.

    Each sentence draws from a generator of its own (B of them, on the CPU), so that a sample does not depend
    on the batch. `top_k` > 0 keeps the k likeliest tokens only; the temperature must be above 0.
    """

    def choose(log_probs: Tensor, rows: Tensor) -> Tensor:
        scores = log_probs / temperature
        if top_k > 0:
            threshold = scores.topk(min(top_k, scores.shape[1]), dim=1).values[:, -1:]
            scores = scores.masked_fill(scores < threshold, -torch.inf)
        probs = scores.softmax(-1).cpu()
        drawn = [
            torch.multinomial(p, 1, generator=generators[row]) for p, row in zip(probs, rows.tolist(), strict=True)
        ]
        return torch.cat(drawn).to(log_probs.device)

    return _one_token_at_a_time(model, source, choose, special, use_cache)


@torch.no_grad()
def beam_search(
    model,
    source: Tensor,
    special: SpecialTokens,
    beam_size: int = 5,
    length_penalty: float = 1.0,
    use_cache: bool = True,
) -> list[list[int]]:
    """The best finished hypothesis of a beam: source (B, S) -> B lists of token ids without BOS and EOS.

    A hypothesis of n tokens (EOS included) scores its summed log-probability over ((5 + n) / 6) to the power
    of `length_penalty` (Wu et al. 2016, arXiv 1609.08144, eq. 14; 0 turns it off). A sentence is done at its
    length bound, or when `beam_size` hypotheses have finished that no going one beats as it stands: to stop
    at their number alone would leave a confident model with the stumps that came second on the way. A beam
    of 1 is greedy search.
    """
    device, n_sentences, k = source.device, source.shape[0], beam_size
    bounds = length_bounds(source, special.pad)
    state = model.begin_decoding(source, use_cache)
    state = state.select(torch.arange(n_sentences, device=device).repeat_interleave(k))
    sentences = torch.arange(n_sentences, device=device)  # which sentence each group of k rows belongs to
    scores = torch.full((n_sentences, k), -torch.inf, device=device)
    scores[:, 0] = 0.0  # the k hypotheses of a sentence begin alike: let one of them branch
    tokens = torch.full((n_sentences * k,), special.begin, device=device)
    prefixes = torch.empty(n_sentences, k, 0, dtype=torch.long, device=device)
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(n_sentences)]

    for length in range(1, int(bounds.max()) + 1):
        log_probs, state = _next_log_probs(model, tokens, state, special)
        n_words = log_probs.shape[1]
        totals = (scores[:, :, None] + log_probs.view(-1, k, n_words)).flatten(1)  # (B, K * V)
        # Of the best 2k candidates at most k end here, so k going ones are always left.
        candidate_scores, candidates = totals.topk(2 * k, dim=1)
        parents, words = candidates // n_words, candidates % n_words
        ends = words == special.end

        # An ending counts only where it ranks among the best k: worse ones would crowd out going hypotheses.
        penalty = ((5 + length) / 6) ** length_penalty
        for b, rank in (ends[:, :k] & candidate_scores[:, :k].isfinite()).nonzero().tolist():
            hypothesis = prefixes[b, parents[b, rank]].tolist()
            done = finished[int(sentences[b])]
            done.append((float(candidate_scores[b, rank]) / penalty, hypothesis))
            done.sort(reverse=True)
            del done[k:]

        going_first = ends.long().sort(dim=1, stable=True).indices[:, :k]
        scores = candidate_scores.gather(1, going_first)
        parents, words = parents.gather(1, going_first), words.gather(1, going_first)
        prefixes = torch.cat(
            [prefixes.gather(1, parents[:, :, None].expand(-1, -1, length - 1)), words[:, :, None]], dim=2
        )
        state = state.select((parents + torch.arange(len(sentences), device=device)[:, None] * k).flatten(),
                             same_sources=True)  # fmt: skip

        at_bound = bounds[sentences] <= length
        for b in at_bound.nonzero()[:, 0].tolist():
            done = finished[int(sentences[b])]
            if not done:  # nothing ended in time: the best going hypothesis stands
                done.append((float(scores[b, 0]) / penalty, prefixes[b, 0].tolist()))
        worst = [finished[i][-1][0] if len(finished[i]) == k else -torch.inf for i in sentences.tolist()]
        beaten = scores[:, 0] / penalty <= torch.tensor(worst, device=device)
        keep = (~(beaten | at_bound)).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(sentences):
            state = state.select((keep[:, None] * k + torch.arange(k, device=device)).flatten())
            sentences, scores, words, prefixes = sentences[keep], scores[keep], words[keep], prefixes[keep]
        tokens = words.flatten()
    return [done[0][1] for done in finished]


def decode_in_batches(
    model,
    sentences: list[list[int]],
    special: SpecialTokens,
    *,
    beam_size: int,
    length_penalty: float,
    batch_size: int,
    device: torch.device,
) -> list[list[int]]:
    """Translate token lists (each ending in EOS), longest first; the outputs come in the order given."""
    outputs: list[list[int]] = [[] for _ in sentences]
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [torch.tensor(sentences[i]) for i in chosen]
        source = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=special.pad).to(device)
        if beam_size == 1:
            found = greedy_search(model, source, special)
        else:
            found = beam_search(model, source, special, beam_size, length_penalty)
        for i, output in zip(chosen, found, strict=True):
            outputs[i] = output
    return outputs
