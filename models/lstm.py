"""LSTM encoder-decoder with attention (Bahdanau et al. 2015, arXiv 1409.0473; Luong et al. 2015, 1508.04025).

Shapes: B sentences, S source positions, T target positions, E = embedding_dim, H = hidden_size, D the width
of what goes into the output projection, V words. Token ids are int64. A source row is real tokens and then
padding, and ends in EOS: a row of nothing but padding would make every attention weight NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout
from models.lstm_kernel import Weights, kernel_weights, run_lstm

# Gates in torch's order: input, forget, cell, output. Far beyond where a sigmoid in any precision is 0 or 1.
PADDING_GATES = (-1024.0, 1024.0, 0.0, -1024.0)


def initialise_lstm(lstm: nn.LSTM) -> nn.LSTM:
    """Xavier input weights and orthogonal recurrent ones for each gate; the forget gate begins open.

    A forget bias of 1 lets gradients through from the start (Jozefowicz et al. 2015, section 2.2).
    """
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        for gate, rows in enumerate(parameter.chunk(4)):
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(rows)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(rows)
            elif name.startswith("bias_ih") and gate == 1:
                nn.init.ones_(rows)
    return lstm


class BidirectionalLayer(nn.Module):
    """One LSTM layer in both directions, (B, S, I) -> (B, S, 2H), that stands still on padding.

    Plain LSTMs read padding like words, and the reverse direction reads it first. Packed sequences do not,
    but they need the lengths on the host, and on a CPU they leave oneDNN's kernel.
    Here one more input, 1 at padding, shuts the input and output gates and holds the forget gate open. So
    the cell keeps its value there, the output is 0, and no gradient arises, all exactly. Zeros fill the inputs up
    to a multiple of 8: for an odd number of them, oneDNN's bf16 kernel takes up to five times as long.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.lstm = initialise_lstm(nn.LSTM(input_size, hidden_size, batch_first=True, bidirectional=True))

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, I), padding (B, S) bool -> outputs (B, S, 2H), last hidden and cell states (B, 2H).

        The last state of the forward direction is that of a row's last token, of the reverse one its first's.
        """
        n_rows, h = x.shape[0], self.lstm.hidden_size
        n_zeros = -(self.lstm.input_size + 1) % 8
        padding_column = torch.cat([x.new_full((h, 1), gate) for gate in PADDING_GATES])
        weights = []
        for input_weight, *others in self.lstm.all_weights:  # forward, reverse
            weights += [F.pad(torch.cat([input_weight, padding_column], 1), (0, n_zeros)), *others]
        x = F.pad(torch.cat([x, padding[:, :, None].to(x.dtype)], 2), (0, n_zeros))
        start = x.new_zeros(2, n_rows, h)
        outputs, (_, cell) = run_lstm(
            x, (start, start), kernel_weights(weights), training=self.training, bidirectional=True
        )
        last = (~padding).sum(1) - 1
        rows = torch.arange(n_rows, device=x.device)
        hidden = torch.cat([outputs[rows, last, :h], outputs[:, 0, h:]], 1)
        return outputs, hidden, torch.cat([cell[0], cell[1]], 1)


class DotProductAttention(nn.Module):
    """Luong's global attention with the plain dot product as score (section 3.1), over real tokens alone."""

    def forward(self, queries: Tensor, memory: Tensor, source_mask: Tensor) -> tuple[Tensor, Tensor]:
        """queries (B, T, H), memory (B, S, H), source_mask (B, S), True at tokens.

        Returns the contexts (B, T, H) and the weights (B, T, S): fp32, each row sums to 1.
        """
        scores = (queries @ memory.transpose(1, 2)).float()
        weights = scores.masked_fill(~source_mask[:, None, :], -torch.inf).softmax(-1)
        return weights.to(memory.dtype) @ memory, weights


@dataclass
class DecoderState:
    """What the decoder keeps between two positions, for N hypotheses (rows) of B sentences.

    The N / B hypotheses of a sentence stand together, and share what belongs to their source.
    """

    source_mask: Tensor  # (B, S)
    memory: Tensor  # (B, S, H)
    weights: Sequence[Weights]  # of the decoder's layers, the same at each position
    layers: list[tuple[Tensor, Tensor]]  # per layer, hidden and cell state (1, N, H)
    fed: Tensor | None  # (N, 1, H), the last attentional vector, with input feeding

    def select(self, rows: Tensor, same_sources: bool = False) -> "DecoderState":
        """The state of the given rows (int64): all those of some sentences, in any order of the sentences.

        `same_sources` promises that each row is replaced by one of the same source sentence, as when the
        beams of a sentence are re-ordered: what belongs to the source then stays where it is.
        """
        n_beams = self.layers[0][0].shape[1] // len(self.memory)
        sources = rows[::n_beams] // n_beams
        return DecoderState(
            self.source_mask if same_sources else self.source_mask[sources],
            self.memory if same_sources else self.memory[sources],
            self.weights,
            [(hidden[:, rows], cell[:, rows]) for hidden, cell in self.layers],
            None if self.fed is None else self.fed[rows],
        )

    def with_beams(self, k: int) -> "DecoderState":
        """k rows in the place of each one."""
        rows = torch.arange(self.layers[0][0].shape[1], device=self.memory.device).repeat_interleave(k)
        return self.select(rows, same_sources=True)


class Seq2SeqLSTM(nn.Module):
    """Bidirectional LSTM encoder and LSTM decoder with attention. `forward` calls the objective on its states.

    Decoder output and context, side by side, go into the output projection (D = 2H), or through one more
    layer to the attentional vector first: `attentional_layer`, tanh(W [context; output]), D = H (Luong et al.
    2015, eq. 5). `input_feeding` gives that vector to the next position's input (section 3.3), so that
    the decoder goes position by position. With `early_attention` the decoder's first layer asks and the context
    is input of the layers above it too (after Wu et al. 2016, arXiv 1609.08144, section 3): what has been
    attended to then enters a recurrent state, in one call over the whole target. `tied_embeddings` as in the
    Transformer: "none"; "output" (the target embedding is the output projection); "three-way" (the source
    embedding too, which needs one joint vocabulary). A tied D becomes E by a linear map where they differ.
    Dropout is on embeddings, on the inputs of upper layers and on what goes into the output projection.

    In training, each position takes the true token with probability `teacher_forcing_ratio` and the model's
    own likeliest one otherwise, drawn for each sentence (Bengio et al. 2015, arXiv 1506.03099, without a
    sequence of ratios: set the attribute for one). At 1 the decoder reads the whole target in one call;
    `step_by_step` makes it go position by position all the same, to time or check the one against the other.
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        embedding_dim: int = 64,
        hidden_size: int = 128,
        n_layers: int = 2,
        dropout: float = 0.1,
        attentional_layer: bool = False,
        input_feeding: bool = False,
        early_attention: bool = False,
        tied_embeddings: Literal["none", "output", "three-way"] = "none",
        teacher_forcing_ratio: float = 1.0,
        step_by_step: bool = False,
        pad_id: int = 0,
    ):
        super().__init__()
        if tied_embeddings == "three-way" and source_vocab_size != target_vocab_size:
            raise ValueError("three-way tied embeddings need one joint vocabulary")
        if input_feeding and not attentional_layer:
            raise ValueError("input_feeding feeds the attentional vector: it needs attentional_layer")
        if early_attention and n_layers < 2:
            raise ValueError("early_attention gives the context to the layers above the first: it needs two layers")
        if not 0 <= teacher_forcing_ratio <= 1:
            raise ValueError(f"teacher_forcing_ratio of {teacher_forcing_ratio}: give a probability")
        if min(embedding_dim, hidden_size, n_layers) < 1:
            raise ValueError("embedding_dim, hidden_size and n_layers must be at least 1")
        e, h = embedding_dim, hidden_size
        self.pad_id, self.input_feeding = pad_id, input_feeding
        self.teacher_forcing_ratio, self.step_by_step = teacher_forcing_ratio, step_by_step
        # One name for each matrix: a tied one stands once in the state dict.
        self.target_embedding = nn.Embedding(target_vocab_size, e)
        self.source_embedding = None if tied_embeddings == "three-way" else nn.Embedding(source_vocab_size, e)
        self.encoder_layers = nn.ModuleList(BidirectionalLayer(2 * h if i else e, h) for i in range(n_layers))
        self.initial_hidden = nn.ModuleList(nn.Linear(2 * h, h) for _ in range(n_layers))
        self.initial_cell = nn.ModuleList(nn.Linear(2 * h, h) for _ in range(n_layers))
        self.memory_projection = nn.Linear(2 * h, h)
        # A layer each, for models.dropout between them; nn.LSTM draws its own masks.
        inputs = [e + h if input_feeding else e] + [2 * h if early_attention else h] * (n_layers - 1)
        self.decoder_layers = nn.ModuleList(initialise_lstm(nn.LSTM(n, h, batch_first=True)) for n in inputs)
        self.attention = DotProductAttention()
        self.asking_layer = 0 if early_attention else n_layers - 1
        width = h if attentional_layer else 2 * h
        self.attentional_layer = (
            nn.Sequential(nn.Linear(2 * h, h), nn.Tanh()) if attentional_layer else nn.Identity()
        )
        tied = tied_embeddings != "none"
        self.to_embedding = nn.Linear(width, e, bias=False) if tied and width != e else nn.Identity()
        self.output = None if tied else nn.Linear(width, target_vocab_size, bias=False)
        self.dropout = Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.source_embedding, self.target_embedding, self.output):
            if table is not None:
                nn.init.uniform_(table.weight, -0.1, 0.1)

    @property
    def output_weight(self) -> Tensor:
        """The projection to the target vocabulary, (V, D)."""
        return self.target_embedding.weight if self.output is None else self.output.weight

    def embed(self, table: nn.Embedding, tokens: Tensor, cut: Tensor | None) -> Tensor:
        """Embed tokens (B, T), those that are `cut` (B, T) as zeros: (B, T, E)."""
        x = table(tokens)
        if cut is not None:
            x = x.masked_fill(cut[..., None], 0.0)
        return self.dropout(x)

    def begin_decoding(self, source: Tensor, use_cache: bool = True, cut: Tensor | None = None) -> DecoderState:
        """Encode source (B, S) and open the decoder for one row a sentence.

        The state is all that a recurrent decoder has of its past, so `use_cache` makes no difference here.
        """
        padding = source == self.pad_id
        x = self.embed(self.source_embedding or self.target_embedding, source, cut)
        layers = []
        for i, layer in enumerate(self.encoder_layers):
            x, hidden, cell = layer(self.dropout(x) if i else x, padding)
            layers.append((self.initial_hidden[i](hidden)[None], self.initial_cell[i](cell)[None]))
        memory = self.memory_projection(x)
        fed = torch.zeros_like(memory[:, :1]) if self.input_feeding else None
        weights = [kernel_weights(tuple(layer.parameters())) for layer in self.decoder_layers]
        return DecoderState(~padding, memory, weights, layers, fed)

    def decode(self, tokens: Tensor, state: DecoderState, cut: Tensor | None = None) -> tuple[Tensor, DecoderState]:
        """Read tokens (N, T) on from `state`: vectors for the output projection (N, T, D) and the new state.

        With input feeding, T must be 1.
        """
        x = self.embed(self.target_embedding, tokens, cut)
        if state.fed is not None:
            x = torch.cat([x, state.fed], 2)
        layers, context = [], None
        for i, weights in enumerate(state.weights):
            if context is not None:
                x = torch.cat([x, context], 2)
            x, present = run_lstm(self.dropout(x) if i else x, state.layers[i], weights, training=self.training)
            layers.append(present)
            if i == self.asking_layer:
                queries = x.reshape(len(state.memory), -1, x.shape[2])  # the beams of a sentence ask together
                context = self.attention(queries, state.memory, state.source_mask)[0].reshape(x.shape)
        assert context is not None  # the asking layer is one of them
        x = self.dropout(self.attentional_layer(torch.cat([context, x], 2)))
        fed = x if self.input_feeding else None
        return self.to_embedding(x), DecoderState(state.source_mask, state.memory, state.weights, layers, fed)

    def decode_step_by_step(self, target: Tensor, state: DecoderState, teacher_forcing_ratio: float) -> Tensor:
        """Read target (B, T) a position at a time, some tokens replaced by the model's own: (B, T, D)."""
        # Drawn on the host: which rows take their own token is then known without waiting for the device.
        takes_own = torch.rand(target.shape[1], target.shape[0]) >= teacher_forcing_ratio
        takes_own[0] = False  # BOS
        all_rows = takes_own.nonzero()[:, 1].to(target.device)  # one copy for all positions
        rows_at = all_rows.split(takes_own.sum(1).tolist())
        vectors: list[Tensor] = []
        for tokens, rows in zip(target.unbind(1), rows_at, strict=True):
            if rows.numel():
                with torch.no_grad():
                    own = F.linear(vectors[-1][rows, 0], self.output_weight).argmax(1)
                tokens = tokens.scatter(0, rows, own)
            vector, state = self.decode(tokens[:, None], state)
            vectors.append(vector)
        return torch.cat(vectors, 1)

    def decode_target(self, source: Tensor, target: Tensor, cut: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """source (B, S), target (B, T), which begins with BOS -> vectors for the output projection (B, T, D).

        Raises ValueError for `cut` tokens of a target that is read position by position.
        """
        cut_source, cut_target = cut or (None, None)
        state = self.begin_decoding(source, cut=cut_source)
        ratio = self.teacher_forcing_ratio if self.training else 1.0
        if self.input_feeding or self.step_by_step or ratio < 1:
            if cut is not None:
                raise ValueError("tokens are cut only of a target that is read in one call")
            return self.decode_step_by_step(target, state, ratio)
        return self.decode(target, state, cut_target)[0]

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """source (B, S), target (B, T) -> logits of each next token (B, T, V)."""
        return F.linear(self.decode_target(source, target), self.output_weight)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        objective: Callable[..., dict[str, Tensor]],
        *arguments,
        cut: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """What `objective(vectors, output_weight, *arguments)` makes of the vectors before the output projection.

        source (B, S); target (B, T), which begins with BOS. The objective gets vectors (B, T, D) and the
        projection (V, D); it is called in here so that DDP, FSDP, autocast and the compiler see it.
        `cut` (B, S) and (B, T): where the embeddings are zero.
        """
        vectors = self.decode_target(source, target, cut)
        return objective(vectors, self.output_weight, *arguments)

    def decode_step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Feed one token to each row: tokens (N,) -> logits of the next ones (N, V) and the new state."""
        vectors, state = self.decode(tokens[:, None], state)
        return F.linear(vectors[:, 0], self.output_weight), state

    @torch.no_grad()
    def cross_attention_weights(self, source: Tensor, target: Tensor) -> Tensor:
        """The decoder's attention over the source, as of one head: (B, 1, T, S)."""
        weights = []
        hook = self.attention.register_forward_hook(lambda module, args, outputs: weights.append(outputs[1]))
        try:
            self.decode_target(source, target)
        finally:
            hook.remove()
        return torch.cat(weights, 1)[:, None]
