"""Encoder-decoder Transformer (Vaswani et al. 2017, arXiv 1706.03762), pre-norm or post-norm.

Shapes: B sentences, S source positions, T target positions, D = d_model, H heads, K = D / H, V words.
Token ids are int64. A source row ends in EOS, so it always holds at least one real token: a row of
nothing but padding would make every attention weight NaN.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autocast import in_product_dtype
from models.dropout import Dropout, dropout

# On a CPU, forward and backward of scaled_dot_product_attention took 4.1, 2.5, 2.1 and 1.3 times as long as
# plain batched matmuls at 16, 64, 128 and 256 tokens (bf16, two cores, 4,096 tokens a batch); the plain form
# holds all (T, S) weights, so long sentences leave it.
CPU_PLAIN_ATTENTION_UP_TO = 256


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled dot products: (B, H, T, S), each row sums to 1, zero where `mask` is False."""
    if q.shape[-2] > 1:  # one query reads the keys as they lie
        k = k.contiguous()  # else the product would copy them transposed, number by number
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        # The mask is small, the scores are not: one pass over them adds it.
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, p_drop: float) -> Tensor:
    """Scaled dot-product attention: q (B, H, T, K), k and v (B, H, S, K) -> (B, H, T, K).

    `mask` (broadcast to B, H, T, S) is True where attention is allowed; `causal` needs T == S and no mask.
    """
    # An exported graph is one for all lengths.
    if q.device.type != "cpu" or torch.compiler.is_exporting() or k.shape[-2] > CPU_PLAIN_ATTENTION_UP_TO:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p_drop, is_causal=causal)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return dropout(attention_weights(q, k, mask), p_drop) @ v


class MultiHeadAttention(nn.Module):
    """Multi-head attention (section 3.2.2) of one sequence over another, or over itself."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.query = nn.Linear(d_model, d_model)
        # No biases here: one on the keys moves all scores of a row alike, so its gradient is rounding noise,
        # which Adam would blow up; one on the values adds what the output's own bias can add.
        self.key_value = nn.Linear(d_model, 2 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model)
        # Xavier as for three separate D x D maps: a joint (2D, D) matrix would get a smaller bound.
        for weight in (self.query.weight, *self.key_value.weight.chunk(2), self.output.weight):
            nn.init.xavier_uniform_(weight)
        for layer in (self.query, self.output):
            nn.init.zeros_(layer.bias)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, H, T, K)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `memory` (B, S, D): two tensors (B, H, S, K)."""
        keys, values = self.key_value(memory).chunk(2, -1)
        return self.split_heads(keys), self.split_heads(values)

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        """x (B, T, D) over keys and values (B, H, S, K) -> (B, T, D)."""
        p_drop = self.dropout if self.training else 0.0
        mixed = attention(self.split_heads(self.query(x)), *keys_values, mask, causal, p_drop)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Attention weights (B, H, T, S) of x (B, T, D) over memory (B, S, D)."""
        return attention_weights(self.split_heads(self.query(x)), self.keys_values(memory)[0], mask)


class FeedForward(nn.Sequential):
    """Two linear maps with a ReLU between: (.., D) -> (.., D)."""

    def __init__(self, d_model: int, d_ff: int, dropout: float):
        wider, narrower = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        super().__init__(wider, nn.ReLU(), Dropout(dropout), narrower)
        for layer in (wider, narrower):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class Sublayer(nn.Module):
    """Residual connection with normalisation before the branch (pre-norm) or after the sum (post-norm)."""

    def __init__(self, d_model: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.dropout, self.pre_norm = Dropout(dropout), pre_norm

    def forward(self, x: Tensor, branch) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(branch(in_product_dtype(self.norm(x))))
        return self.norm(x + self.dropout(branch(in_product_dtype(x))))


class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_ff, dropout, attention_dropout, activation_dropout, pre_norm):
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, n_heads, attention_dropout)
        self.feed_forward = FeedForward(d_model, d_ff, activation_dropout)
        self.self_sublayer = Sublayer(d_model, dropout, pre_norm)
        self.feed_forward_sublayer = Sublayer(d_model, dropout, pre_norm)

    def forward(self, x: Tensor, source_mask: Tensor) -> Tensor:
        """x (B, S, D), source_mask (B, 1, 1, S) -> (B, S, D)."""
        attend = self.self_attention
        x = self.self_sublayer(x, lambda y: attend(y, attend.keys_values(y), source_mask))
        return self.feed_forward_sublayer(x, self.feed_forward)


class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_ff, dropout, attention_dropout, activation_dropout, pre_norm):
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, n_heads, attention_dropout)
        self.cross_attention = MultiHeadAttention(d_model, n_heads, attention_dropout)
        self.feed_forward = FeedForward(d_model, d_ff, activation_dropout)
        self.self_sublayer = Sublayer(d_model, dropout, pre_norm)
        self.cross_sublayer = Sublayer(d_model, dropout, pre_norm)
        self.feed_forward_sublayer = Sublayer(d_model, dropout, pre_norm)

    def forward(self, x: Tensor, memory: Tensor, source_mask: Tensor) -> Tensor:
        """The whole target at once: x (B, T, D), memory (B, S, D) -> (B, T, D)."""
        attend = self.self_attention
        x = self.self_sublayer(x, lambda y: attend(y, attend.keys_values(y), None, causal=True))
        memory_keys_values = self.cross_attention.keys_values(memory)
        x = self.cross_sublayer(x, lambda y: self.cross_attention(y, memory_keys_values, source_mask))
        return self.feed_forward_sublayer(x, self.feed_forward)

    def step(
        self,
        x: Tensor,
        extend_past: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        memory_keys_values: tuple[Tensor, Tensor],
        source_mask: Tensor,
    ) -> Tensor:
        """One position with its past: x (N, 1, D) -> (N, 1, D).

        `extend_past(keys, values)` puts those of this position (N, H, 1, K) behind the layer's earlier ones and
        returns all (N, H, t, K). `memory_keys_values` (B, H, S, K) and `source_mask` (B, 1, 1, S) are those of B
        sentences with N / B rows each, which ask them together.
        """
        n_sentences = source_mask.shape[0]

        def attend_past(y: Tensor) -> Tensor:
            return self.self_attention(y, extend_past(*self.self_attention.keys_values(y)), None)

        def attend_source(y: Tensor) -> Tensor:
            queries = y.reshape(n_sentences, -1, y.shape[-1])  # (B, N / B, D)
            return self.cross_attention(queries, memory_keys_values, source_mask).reshape(y.shape)

        x = self.self_sublayer(x, attend_past)
        x = self.cross_sublayer(x, attend_source)
        return self.feed_forward_sublayer(x, self.feed_forward)


class Past:
    """Keys and values of the N rows' positions so far, in memory that is there for further ones.

    Positions come first: each product reads what it needs as it lies, and a position is added without a copy of
    the others. The beams of a sentence have most of their past in common, so that selecting rows copies only those
    positions that another hypothesis wrote.
    """

    def __init__(self, n_layers: int, n_rows: int, like: Tensor, capacity: int = 32):
        self.length = 0  # positions that all layers have
        self._memory = like.new_empty(capacity, n_layers, 2, n_rows, like.shape[-1])
        self._writers = torch.empty(capacity, n_rows, dtype=torch.long, device=like.device)  # rows as of that step

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put those of the next position (N, H, 1, K) behind those of `layer`; returns all: (N, H, t, K) both."""
        if self.length == len(self._memory):
            self._memory = torch.cat([self._memory, torch.empty_like(self._memory)])
            self._writers = torch.cat([self._writers, torch.empty_like(self._writers)])
        for place, new in enumerate((keys, values)):
            self._memory[self.length, layer, place] = new.flatten(1)
        both = self._memory[: self.length + 1, layer].unflatten(-1, (keys.shape[1], -1)).permute(1, 2, 3, 0, 4)
        return both[0], both[1]

    def end_position(self) -> None:
        """All layers have the next position."""
        self._writers[self.length] = torch.arange(self._writers.shape[1], device=self._writers.device)
        self.length += 1

    def select(self, rows: Tensor) -> None:
        """Take the given rows (int64) in the place of all."""
        n_rows = len(rows)
        if n_rows > self._writers.shape[1]:
            self._memory, self._writers = self._memory[..., rows, :], self._writers[:, rows]
            return
        memory, before = self._memory[..., :n_rows, :], self._writers[:, :n_rows]
        writers = self._writers[: self.length, rows]
        positions, places = (writers != before[: self.length]).nonzero(as_tuple=True)
        memory[positions, :, :, places] = self._memory[positions, :, :, rows[places]]
        before[: self.length] = writers
        self._memory, self._writers = memory, before


@dataclass
class DecoderState:
    """What the decoder keeps between two positions, for N hypotheses (rows) of B sentences.

    The N / B hypotheses of a sentence stand together, and share what belongs to their source.

    With the cache on, `past` holds each layer's keys and values so far, and belongs to the newest state alone: a
    step or a selection changes it in place. With it off, `prefix` (N, t) holds the tokens so far and every step
    computes the whole prefix anew: slower, and the reference for the cache.
    """

    source_mask: Tensor  # (B, 1, 1, S)
    memory: Tensor  # (B, S, D)
    prefix: Tensor  # (N, t)
    memory_keys_values: list[tuple[Tensor, Tensor]] | None  # per layer, (B, H, S, K)
    past: Past | None

    def select(self, rows: Tensor, same_sources: bool = False) -> "DecoderState":
        """The state of the given rows (int64): all those of some sentences, in any order of the sentences.

        `same_sources` promises that each row is replaced by one of the same source sentence, as when the
        beams of a sentence are re-ordered: what belongs to the source then stays where it is.
        """
        state = DecoderState(self.source_mask, self.memory, self.prefix[rows], self.memory_keys_values, self.past)
        if not same_sources:
            n_beams = len(self.prefix) // len(self.memory)
            sources = rows[::n_beams] // n_beams
            state.source_mask, state.memory = self.source_mask[sources], self.memory[sources]
            if self.memory_keys_values is not None:
                state.memory_keys_values = [(k[sources], v[sources]) for k, v in self.memory_keys_values]
        if self.past is not None:
            self.past.select(rows)
        return state

    def with_beams(self, k: int) -> "DecoderState":
        """k rows in the place of each one."""
        rows = torch.arange(len(self.prefix), device=self.prefix.device).repeat_interleave(k)
        return self.select(rows, same_sources=True)


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """Sine and cosine positions of section 3.5: (n_positions, D), the halves side by side."""
    rates = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
    angles = torch.arange(n_positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :d_model]


class Transformer(nn.Module):
    """Encoder-decoder Transformer. `forward` calls the objective on its states.

    `tied_embeddings`: "none"; "output" (the target embedding is the output projection); "three-way"
    (Press & Wolf 2017, arXiv 1608.05859: source and target embedding and output projection are one matrix,
    which needs one joint vocabulary). Of learned positions there are `max_positions`, and what lies beyond
    shares the last one; sinusoidal positions have no bound.
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        d_model: int = 512,
        n_heads: int = 8,
        n_encoder_layers: int = 6,
        n_decoder_layers: int = 6,
        d_ff: int = 2048,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        pre_norm: bool = True,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        max_positions: int = 1024,
        tied_embeddings: Literal["none", "output", "three-way"] = "none",
        pad_id: int = 0,
    ):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of n_heads {n_heads}")
        if tied_embeddings == "three-way" and source_vocab_size != target_vocab_size:
            raise ValueError("three-way tied embeddings need one joint vocabulary")
        self.pad_id, self.d_model = pad_id, d_model
        # One name for each matrix: a tied one stands once in the state dict.
        self.target_embedding = nn.Embedding(target_vocab_size, d_model)
        self.source_embedding = None if tied_embeddings == "three-way" else nn.Embedding(source_vocab_size, d_model)
        self.output = nn.Linear(d_model, target_vocab_size, bias=False) if tied_embeddings == "none" else None
        for table in (self.source_embedding, self.target_embedding, self.output):
            if table is not None:
                nn.init.normal_(table.weight, std=d_model**-0.5)
        self.learned_positions = None
        if positions == "learned":
            self.learned_positions = nn.Embedding(max_positions, d_model)
            nn.init.normal_(self.learned_positions.weight, std=d_model**-0.5)
        # No buffer: DDP would broadcast it, and ranks may have let it grow to different lengths.
        self.position_table = sinusoidal_positions(256, d_model)

        sizes = (d_model, n_heads, d_ff, dropout, attention_dropout, activation_dropout, pre_norm)
        self.encoder_layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(n_encoder_layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(*sizes) for _ in range(n_decoder_layers))
        # Post-norm layers end in a norm of their own; a pre-norm stack needs one more.
        self.encoder_norm = nn.LayerNorm(d_model) if pre_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(d_model) if pre_norm else nn.Identity()
        self.dropout = Dropout(dropout)

    @property
    def output_weight(self) -> Tensor:
        """The projection to the target vocabulary, (V, D)."""
        return self.target_embedding.weight if self.output is None else self.output.weight

    def _decoder_layers(self) -> Sequence[DecoderLayer]:
        return cast(Sequence[DecoderLayer], self.decoder_layers)  # nn.ModuleList forgets of what it is one

    def positions(self, n: int) -> Tensor:
        """What is added to the embeddings at positions 0 to n - 1: (n, D)."""
        if self.learned_positions is None:
            return sinusoidal_positions(n, self.d_model)
        return self.learned_positions.weight[torch.arange(n).clamp(max=self.learned_positions.num_embeddings - 1)]

    def embed(self, table: nn.Embedding, tokens: Tensor, start: int = 0, cut: Tensor | None = None) -> Tensor:
        """Embed tokens (B, T) that stand at positions start, start + 1, ...: (B, T, D).

        Where `cut` (B, T) is True the position is all that is told of the token.
        """
        end = start + tokens.shape[1]
        if self.learned_positions is not None:
            index = torch.arange(start, end, device=tokens.device)
            positions = self.learned_positions(index.clamp(max=self.learned_positions.num_embeddings - 1))
        else:
            known = self.position_table  # another thread may put another in its place meanwhile
            if end > len(known) or known.device != tokens.device:
                n_known = max(len(known), 2 ** math.ceil(math.log2(end)))
                known = self.position_table = sinusoidal_positions(n_known, self.d_model).to(tokens.device)
            positions = known[start:end]
        x = table(tokens) * math.sqrt(self.d_model)
        if cut is not None:
            x = x.masked_fill(cut[..., None], 0.0)
        return self.dropout(x + positions.to(x.dtype))

    def source_mask(self, source: Tensor) -> Tensor:
        """True at real tokens, shaped to broadcast over heads and queries: (B, 1, 1, S)."""
        return (source != self.pad_id)[:, None, None, :]

    def encode(self, source: Tensor, cut: Tensor | None = None) -> Tensor:
        """source (B, S), padded with pad_id -> memory (B, S, D)."""
        mask = self.source_mask(source)
        x = self.embed(self.source_embedding or self.target_embedding, source, cut=cut)
        for layer in self.encoder_layers:
            x = layer(x, mask)
        return in_product_dtype(self.encoder_norm(x))  # each decoder layer reads it

    def decode(self, target: Tensor, memory: Tensor, source_mask: Tensor, cut: Tensor | None = None) -> Tensor:
        """target (B, T), which begins with BOS -> states (B, T, D) before the output projection."""
        x = self.embed(self.target_embedding, target, cut=cut)
        for layer in self.decoder_layers:
            x = layer(x, memory, source_mask)
        return self.decoder_norm(x)

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """source (B, S), target (B, T) -> logits of each next token (B, T, V)."""
        states = self.decode(target, self.encode(source), self.source_mask(source))
        return F.linear(states, self.output_weight)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        objective: Callable[..., dict[str, Tensor]],
        *arguments,
        cut: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """What `objective(states, output_weight, *arguments)` makes of the states before the output projection.

        source (B, S); target (B, T), which begins with BOS. The objective gets states (B, T, D) and the
        projection (V, D); it is called in here so that DDP, FSDP, autocast and the compiler see it.
        `cut` (B, S) and (B, T): where the embeddings are zero.
        """
        cut_source, cut_target = cut or (None, None)
        memory = self.encode(source, cut_source)
        states = self.decode(target, memory, self.source_mask(source), cut_target)
        return objective(states, self.output_weight, *arguments)

    def begin_decoding(self, source: Tensor, use_cache: bool = True) -> DecoderState:
        """Encode source (B, S) and open the decoder for one row a sentence."""
        memory = self.encode(source)
        memory_keys_values = past = None
        if use_cache:
            # Laid out once as each step reads them: a product would else copy both.
            memory_keys_values = [
                (keys.contiguous(), values.contiguous())
                for keys, values in (layer.cross_attention.keys_values(memory) for layer in self._decoder_layers())
            ]
            past = Past(len(self.decoder_layers), len(source), memory)
        return DecoderState(self.source_mask(source), memory, source[:, :0], memory_keys_values, past)

    def decode_step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Feed one token to each row: tokens (N,) -> logits of the next ones (N, V) and the new state."""
        position = state.prefix.shape[1]
        prefix = torch.cat([state.prefix, tokens[:, None]], dim=1)
        if state.past is None or state.memory_keys_values is None:
            n_beams = len(prefix) // len(state.memory)
            memory, source_mask = (t.repeat_interleave(n_beams, 0) for t in (state.memory, state.source_mask))
            states = self.decode(prefix, memory, source_mask)[:, -1]
        else:
            x = self.embed(self.target_embedding, tokens[:, None], start=position)
            for i, (layer, keys_values) in enumerate(
                zip(self._decoder_layers(), state.memory_keys_values, strict=True)
            ):
                x = layer.step(x, partial(state.past.extended, i), keys_values, state.source_mask)
            state.past.end_position()
            states = self.decoder_norm(x)[:, 0]
        state = DecoderState(state.source_mask, state.memory, prefix, state.memory_keys_values, state.past)
        return F.linear(states, self.output_weight), state

    @torch.no_grad()
    def cross_attention_weights(self, source: Tensor, target: Tensor) -> Tensor:
        """The last decoder layer's attention over the source: (B, H, T, S)."""
        memory, mask = self.encode(source), self.source_mask(source)
        weights = []
        last = self._decoder_layers()[-1].cross_attention
        hook = last.register_forward_pre_hook(
            lambda module, args: weights.append(module.weights(args[0], memory, mask))
        )
        try:
            self.decode(target, memory, mask)
        finally:
            hook.remove()
        return weights[0]
