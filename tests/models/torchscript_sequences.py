"""Attention, recurrence and other networks over sequences, to be lowered."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchscript_blocks import Block

WIDTH = 8
SEQUENCE, LONGER = (6, WIDTH), (9, WIDTH)


class Recurrent(nn.Module):
    """Any recurrent layer, and what classifiers read of it."""

    def __init__(self, layer: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.layer, self.batch_first = layer, batch_first

    def forward(self, x):
        if not self.batch_first:
            x = x.transpose(0, 1)
        sequence, _ = self.layer(x)
        return sequence[:, -1] if self.batch_first else sequence[-1] + sequence.mean(0)


class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 5, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.gru = nn.GRU(10, 4, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        sequence, (hidden, cell) = self.lstm(x)
        _, state = self.gru(sequence)
        features = torch.cat([hidden[-2], hidden[-1], cell[0], cell[1], state[0]], 1)
        return self.head(features)


class GivenState(nn.Module):
    """A learned first state, one per row."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.randn(1, 1, 5))
        self.cell = nn.Parameter(torch.randn(1, 1, 5))
        self.lstm = nn.LSTM(WIDTH, 5, batch_first=True)

    def forward(self, x):
        hidden = self.hidden.expand(-1, x.size(0), -1).contiguous()
        cell = self.cell.repeat(1, x.size(0), 1)
        return self.lstm(x, (hidden, cell))[0].amax(1)


class Cells(nn.Module):
    """Cells unrolled over a number of steps that the code fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(WIDTH, 5)
        self.gru = nn.GRUCell(5, 4)
        self.rnn = nn.RNNCell(4, 3, nonlinearity="relu")

    def forward(self, x):
        hidden = x.new_zeros(x.size(0), 5)
        cell = torch.zeros_like(hidden)
        state = x.new_zeros(x.size(0), 4)
        last = x.new_zeros(x.size(0), 3)
        for step in range(4):
            hidden, cell = self.lstm(x[:, step], (hidden, cell))
            state = self.gru(hidden, state)
            last = self.rnn(state, last)
        return last


class Packed(nn.Module):
    """Tokens, 0 for padding; the lengths are counted."""

    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4, padding_idx=0)
        self.layer = kind(4, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, 3)

    def forward(self, tokens):
        lengths = (tokens != 0).sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        sequence, state = self.layer(packed)
        hidden = state[0] if isinstance(state, tuple) else state
        padded, _ = pad_packed_sequence(sequence, batch_first=True, total_length=tokens.size(1))
        return self.head(torch.cat([hidden[0], hidden[1], padded.sum(1)], 1))


class PackedLstm(nn.Module):
    """As `Packed`, in words that TorchScript knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4, padding_idx=0)
        self.lstm = nn.LSTM(4, 5, batch_first=True, bidirectional=True)

    def forward(self, tokens):
        lengths = (tokens != 0).sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        sequence, (hidden, _) = self.lstm(packed)
        padded, _ = pad_packed_sequence(sequence, batch_first=True)
        return torch.cat([hidden[0], hidden[1], padded.amax(1)], 1)


class Attention(nn.Module):
    def __init__(self, heads: int = 2, mask: bool = False, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True, **options)
        self.mask = mask

    def forward(self, x):
        mask = (x[..., 0] > 0.8) & (torch.arange(x.size(1)) > 0) if self.mask else None
        mixed, weights = self.attention(x, x, x, key_padding_mask=mask)
        assert weights is not None, f"no weights of {x.size(0)} rows"
        return mixed.sum(1) + weights.amax((1, 2))[:, None]


class CrossAttention(nn.Module):
    """Keys and values of other widths, one learned query per class."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 8))
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, kdim=WIDTH, vdim=WIDTH)

    def forward(self, x):
        queries = self.queries.expand(x.size(0), -1, -1)
        return self.attention(queries, x, x, need_weights=False)[0].sum(-1)


class ScaledDotProduct(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.causal = causal

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = torch.zeros(t, t, dtype=x.dtype).masked_fill(
            torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf
        )
        if self.causal:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.4)
        return mixed.transpose(1, 2).reshape(n, t, c).mean(1)


class Encoder(nn.Module):
    """A text classifier with learned positions and padding."""

    def __init__(self, padding: bool, norm_first: bool, activation: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 12, activation=activation, batch_first=True, norm_first=norm_first
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 16, WIDTH))
        self.embedding = nn.Embedding(11, WIDTH, padding_idx=0)
        self.head = nn.Linear(WIDTH, 3)
        self.padding = padding

    def forward(self, tokens: Tensor) -> Tensor:
        x = (
            self.embedding(tokens) * math.sqrt(self.head.in_features)
            + self.positions[:, : tokens.size(1)]
        )
        if self.padding:
            mask = tokens == 0
            mask = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], 1)
            x = self.encoder(x, src_key_padding_mask=mask)
        else:
            x = self.encoder(x)
        return self.head(x.mean(1))


class DecoderOnly(nn.Module):
    """Sine positions and a causal mask, sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 12)
        table = torch.arange(16.0)[:, None] / 10 ** torch.linspace(0, 2, WIDTH)
        self.register_buffer("table", table.sin()[:, None])

    def forward(self, x):
        x = x.transpose(0, 1)
        x = x + self.table[: x.size(0)]
        mask = torch.full((x.size(0), x.size(0)), -math.inf, dtype=x.dtype).triu(1)
        return self.layer(x, src_mask=mask)[-1]


def rnn(kind: type[nn.RNNBase], batch_first: bool = True, **options: object) -> Block:
    return Block(
        lambda: Recurrent(kind(WIDTH, 5, batch_first=batch_first, **options), batch_first),
        SEQUENCE,
        LONGER,
    )


SEQUENCES = {
    "lstm": rnn(nn.LSTM),
    "lstm_time_first": rnn(nn.LSTM, False),
    "lstm_both_ways": rnn(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm_projected": rnn(nn.LSTM, proj_size=3, bidirectional=True),
    "lstm_no_bias": rnn(nn.LSTM, bias=False),
    "gru": rnn(nn.GRU, num_layers=2, dropout=0.4),
    "gru_both_ways": rnn(nn.GRU, False, bidirectional=True),
    "rnn_tanh": rnn(nn.RNN, bidirectional=True),
    "rnn_relu": rnn(nn.RNN, nonlinearity="relu", num_layers=2),
    "last_state": Block(LastState, SEQUENCE, LONGER),
    "given_state": Block(GivenState, SEQUENCE, LONGER),
    "cells": Block(Cells, SEQUENCE, LONGER),
    "packed_lstm": Block(PackedLstm, (6,), (9,), 11),
    "packed_gru": Block(lambda: Packed(nn.GRU), (6,), (9,), 11, ("trace",)),
    "packed_rnn": Block(lambda: Packed(nn.RNN), (6,), (9,), 11, ("trace",)),
    "attention": Block(Attention, SEQUENCE, LONGER),
    "attention_odd": Block(lambda: Attention(1, add_bias_kv=True), SEQUENCE, LONGER),
    "attention_zero": Block(lambda: Attention(4, add_zero_attn=True), SEQUENCE, LONGER),
    "attention_masked": Block(lambda: Attention(2, True), SEQUENCE, LONGER),
    "cross_attention": Block(CrossAttention, SEQUENCE, LONGER),
    "scaled_causal": Block(lambda: ScaledDotProduct(True), SEQUENCE, LONGER),
    "scaled_bias": Block(lambda: ScaledDotProduct(False), SEQUENCE, LONGER),
    "decoder_only": Block(DecoderOnly, SEQUENCE, LONGER),
    **{
        f"encoder_{activation}_{'first' if first else 'last'}_{'padded' if padding else 'full'}": (
            Block(lambda args=(padding, first, activation): Encoder(*args), (6,), (9,), 11)
        )
        for padding in (False, True)
        for first, activation in ((False, "relu"), (True, "gelu"))
    },
}
