"""Greedy search, beam search and sampling over any sequence-to-sequence model.

The model gives `begin_decoding(source, use_cache) -> state`, `decode_step(tokens, state) -> (logits, state)`
and a state with `with_beams(k)` and `select(rows, same_sources)`. B sentences, K beams, V words. Each sentence
has a length bound of its own and leaves the batch when it is done, so its output does not depend on its
neighbours.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

LengthNormalization = Literal["power", "gnmt"]
MOST_WORKERS = 4  # batches decoded at a time on a CPU: each holds the memory of one

T = TypeVar("T")
R = TypeVar("R")


class DecoderState(Protocol):
    """What a model keeps between two positions, with a row for each hypothesis."""

    def with_beams(self, k: int) -> Self: ...

    def select(self, rows: Tensor, same_sources: bool = False) -> Self: ...


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that steer decoding."""

    pad: int = 0
    unknown: int = 1
    begin: int = 2
    end: int = 3


def length_bound(n_tokens):
    """The most tokens, EOS included, that the translation of n tokens, EOS included, may have."""
    return 2 * n_tokens + 10


def length_bounds(source: Tensor, pad_id: int) -> Tensor:
    """`length_bound` of each row of source (B, S): (B,)."""
    return length_bound((source != pad_id).sum(1))


def _next_log_probs(
    model, tokens: Tensor, state: DecoderState, special: SpecialTokens
) -> tuple[Tensor, DecoderState]:
    logits, state = model.decode_step(tokens, state)
    logits = logits.float()
    logits[:, special.pad] = -torch.inf
    logits[:, special.begin] = -torch.inf
    return logits.log_softmax(-1), state


@torch.no_grad()
def _one_token_at_a_time(model, source, choose, special, use_cache) -> list[list[int]]:
    """Extend each row by `choose(log_probs (N, V), rows) -> tokens (N,)` until EOS or its bound."""
    bounds = length_bounds(source, special.pad).tolist()
    rows = list(range(source.shape[0]))  # the sentence of each row that is still going
    state = model.begin_decoding(source, use_cache)
    tokens = torch.full((len(rows),), special.begin, device=source.device)
    outputs: list[list[int]] = [[] for _ in rows]
    for length in range(1, max(bounds) + 1):
        log_probs, state = _next_log_probs(model, tokens, state, special)
        tokens = choose(log_probs, rows)
        going = []
        for i, token in enumerate(tokens.tolist()):  # the step's one wait for the device
            if token != special.end:
                outputs[rows[i]].append(token)
                if bounds[rows[i]] > length:
                    going.append(i)
        if not going:
            break
        if len(going) < len(rows):
            rows = [rows[i] for i in going]
            kept = torch.tensor(going, device=source.device)
            tokens, state = tokens[kept], state.select(kept)
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

    def choose(log_probs: Tensor, rows: list[int]) -> Tensor:
        scores = (log_probs - log_probs.amax(1, keepdim=True)) / temperature  # the likeliest stays finite: 0
        if top_k > 0:
            threshold = scores.topk(min(top_k, scores.shape[1]), dim=1).values[:, -1:]
            scores = scores.masked_fill(scores < threshold, -torch.inf)
        probs = scores.softmax(-1).cpu()
        drawn = [torch.multinomial(p, 1, generator=generators[row]) for p, row in zip(probs, rows, strict=True)]
        return torch.cat(drawn).to(log_probs.device)

    return _one_token_at_a_time(model, source, choose, special, use_cache)


def penalties(length: int, length_penalty: float, normalization: LengthNormalization) -> tuple[float, float]:
    """What summed log-probabilities are divided by: that of a hypothesis which ends at position `length`, with
    length - 1 tokens before EOS, and that of one which goes on, with `length` tokens.
    """
    if normalization == "gnmt":
        return ((5 + length) / 6) ** length_penalty, ((6 + length) / 6) ** length_penalty
    return max(length - 1, 1) ** length_penalty, length**length_penalty


@torch.no_grad()
def beam_search(
    model,
    source: Tensor,
    special: SpecialTokens,
    beam_size: int = 5,
    length_penalty: float = 1.0,
    use_cache: bool = True,
    length_normalization: LengthNormalization = "power",
) -> list[list[int]]:
    """The best finished hypothesis of a beam: source (B, S) -> B lists of token ids without BOS and EOS.

    A hypothesis of n tokens, EOS not counted, scores its summed log-probability over n to the power of
    `length_penalty` (0 turns it off); an empty one counts as one of one token. "gnmt" takes ((6 + n) / 6)
    instead of n (Wu et al. 2016, arXiv 1609.08144, eq. 14, where EOS counts): it hardly tells lengths apart
    under 10 tokens, and its translations come out shorter.

    A sentence is done at its length bound, or when `beam_size` hypotheses have finished that no going one beats
    as it stands, which is what it would score if it ended next at no cost: to stop at their number alone would
    leave a confident model with the stumps that came second on the way. So a beam of 1 takes the likeliest token at
    each position, as `greedy_search` does, but may go on where that ends, to a longer one that scores better.
    """
    device, n_sentences, k = source.device, source.shape[0], beam_size
    bounds = length_bounds(source, special.pad)
    longest = int(bounds.max())
    state = model.begin_decoding(source, use_cache).with_beams(k)
    sentences = torch.arange(n_sentences, device=device)  # which sentence each group of k rows belongs to
    scores = torch.full((n_sentences, k), -torch.inf, device=device)
    scores[:, 0] = 0.0  # the k hypotheses of a sentence begin alike: let one of them branch
    tokens = torch.full((n_sentences * k,), special.begin, device=device)
    prefixes = torch.empty(n_sentences, k, 0, dtype=torch.long, device=device)
    # Of each sentence, in the order of the batch: the k best finished scores, and the best hypothesis.
    finished_scores = torch.full((n_sentences, k), -torch.inf, device=device)
    best = torch.full((n_sentences, longest), special.pad, device=device)
    best_lengths = torch.zeros(n_sentences, dtype=torch.long, device=device)

    def note_best(better: Tensor, hypotheses: Tensor) -> None:
        """Put hypotheses (n, t) of the going sentences in the place of their best where `better` (n,)."""
        length = hypotheses.shape[1]
        best[sentences, :length] = torch.where(better[:, None], hypotheses, best[sentences, :length])
        best_lengths[sentences] = best_lengths[sentences].masked_fill(better, length)

    for length in range(1, longest + 1):
        end_penalty, going_penalty = penalties(length, length_penalty, length_normalization)
        log_probs, state = _next_log_probs(model, tokens, state, special)
        # None of a beam's words but its 2k likeliest can be among the best 2k of all: (B, K, 2K).
        n_words = min(2 * k, log_probs.shape[1])
        likeliest = log_probs.view(-1, k, log_probs.shape[1]).topk(n_words, dim=2)
        totals = (scores[:, :, None] + likeliest.values).flatten(1)
        # Of the best 2k candidates at most k end here, so k going ones are always left.
        candidate_scores, candidates = totals.topk(2 * k, dim=1)
        parents = candidates // n_words
        words = likeliest.indices.flatten(1).gather(1, candidates)
        ends = words == special.end

        # An ending counts only where it ranks among the best k: worse ones would crowd out going hypotheses.
        ended_scores = (candidate_scores[:, :k] / end_penalty).masked_fill(~ends[:, :k], -torch.inf)
        best_ended, rank = ended_scores.max(1)
        ended = prefixes.take_along_dim(parents.gather(1, rank[:, None])[:, :, None], 1)[:, 0]
        known = finished_scores[sentences]
        note_best(best_ended > known[:, 0], ended)
        known = torch.cat([known, ended_scores], 1).topk(k, dim=1).values
        finished_scores[sentences] = known

        going_first = ends.long().sort(dim=1, stable=True).indices[:, :k]
        scores = candidate_scores.gather(1, going_first)
        parents, words = parents.gather(1, going_first), words.gather(1, going_first)
        prefixes = torch.cat([prefixes.take_along_dim(parents[:, :, None], 1), words[:, :, None]], dim=2)
        rows = parents + torch.arange(len(sentences), device=device)[:, None] * k

        at_bound = bounds[sentences] <= length
        # Where nothing ended in time, the best going hypothesis stands.
        note_best(at_bound & (known[:, 0] == -torch.inf), prefixes[:, 0])
        beaten = scores[:, 0] / going_penalty <= known[:, -1]
        going = (~(beaten | at_bound)).nonzero()[:, 0]  # the step's one wait for the device
        if len(going) == 0:
            break
        all_go_on = len(going) == len(sentences)
        if not all_go_on:
            going = _with_gaps_closed(going)
            rows = rows[going]
            sentences, scores, words, prefixes = sentences[going], scores[going], words[going], prefixes[going]
        state = state.select(rows.flatten(), same_sources=all_go_on)
        tokens = words.flatten()
    return [row[:length] for row, length in zip(best.tolist(), best_lengths.tolist(), strict=True)]


def _with_gaps_closed(going: Tensor) -> Tensor:
    """The numbers (n,), rising, in the order in which those below n are in their own place.

    The last ones stand where others ended: few rows of a state have to move.
    """
    n = len(going)
    order = torch.arange(n, device=going.device)
    is_gap = torch.ones(n, dtype=torch.bool, device=going.device)
    is_gap[going[going < n]] = False
    order[is_gap] = going[going >= n]
    return order


def batches_within(sizes: list[int], max_sentences: int, max_tokens: int) -> Iterator[list[int]]:
    """Indices of `sizes` in batches, largest first: sentences x the largest <= max_tokens, or one sentence."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    start = 0
    while start < len(order):
        n = max(1, min(max_sentences, max_tokens // sizes[order[start]]))
        yield order[start : start + n]
        start += n


def decode_in_batches(
    model,
    sentences: list[list[int]],
    special: SpecialTokens,
    *,
    beam_size: int,
    length_penalty: float,
    batch_size: int,
    device: torch.device,
    max_tokens: int = 32768,
    length_normalization: LengthNormalization = "power",
) -> list[list[int]]:
    """Translate token lists (each ending in EOS), longest first; the outputs come in the order given.

    A batch has at most `batch_size` sentences, and those that are decoded at a time at most `max_tokens` tokens:
    beams x (the padded source and the longest translation that it may have), so that memory does not grow with
    the longest line of a text. A sentence that has more tokens than that is translated alone.
    """
    sizes = [beam_size * (len(tokens) + length_bound(len(tokens))) for tokens in sentences]

    def decode(chosen: list[int]) -> list[list[int]]:
        rows = [torch.tensor(sentences[i]) for i in chosen]
        source = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=special.pad).to(device)
        if beam_size == 1:
            return greedy_search(model, source, special)
        return beam_search(
            model, source, special, beam_size, length_penalty, length_normalization=length_normalization
        )

    outputs: list[list[int]] = [[] for _ in sentences]
    n_workers = _workers(device)
    batches = list(batches_within(sizes, batch_size, max_tokens // n_workers))
    for chosen, found in zip(batches, _side_by_side(decode, batches, n_workers), strict=True):
        for i, output in zip(chosen, found, strict=True):
            outputs[i] = output
    return outputs


def _workers(device: torch.device) -> int:
    """Batches to decode at a time.

    A step of decoding is many small operations. A CPU's threads that share out each of them wait for one another
    longer than they work; a batch for each thread is what keeps them busy. A GPU has the whole of one.
    """
    return min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1


def _side_by_side(decode: Callable[[T], R], batches: list[T], n_workers: int) -> Iterator[R]:
    """`decode` of each batch, in their order; `n_workers` at a time, which share the threads of this one."""
    if n_workers == 1 or len(batches) == 1:
        yield from map(decode, batches)
        return
    n_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(n_workers, initializer=partial(torch.set_num_threads, n_threads // n_workers))
    try:
        yield from pool.map(decode, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # what a worker set is taken by threads that begin later
