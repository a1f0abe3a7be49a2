"""Architectures of the zoo for text (int64 tokens `(N, 12)`), audio and tables."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .convolutional import CLASSES

VOCABULARY = 50
LENGTH = 12


class LstmText(nn.Module):
    """Two bidirectional layers; the last step of both directions is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 12, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.fc1 = nn.Linear(48, 16)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        steps, (hidden, _) = self.lstm(self.embedding(tokens))
        x = torch.cat([hidden[-2], hidden[-1], steps.mean(1)], dim=1)
        return self.fc2(self.relu(self.fc1(x)))


class PackedText(nn.Module):
    """A GRU over sequences packed by their lengths; the last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12, padding_idx=0)
        self.gru = nn.GRU(12, 14, batch_first=True, bidirectional=True)
        self.act = nn.ReLU()
        self.head = nn.Linear(28, CLASSES)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        hidden = self.gru(packed)[1]
        return self.head(self.act(torch.cat([hidden[0], hidden[1]], dim=1)))


class GruText(nn.Module):
    """One layer over time-major steps; maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.gru = nn.GRU(16, 20)
        self.norm = nn.LayerNorm(20)
        self.narrow = nn.Sequential(nn.Linear(20, 16), nn.Tanh())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        steps, _ = self.gru(self.embedding(tokens).transpose(0, 1))
        return self.head(self.narrow(self.norm(steps).amax(0)))


class TransformerText(nn.Module):
    """Vaswani et al. 2017: encoder layers with ReLU, learnt positions by index, average."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        return self.head(self.encoder(x).mean(dim=1))


class MaskedTransformer(nn.Module):
    """BERT-style (Devlin et al. 2019): a second input masks tokens, the first one is classified."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(LENGTH, width) * 0.5)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
        x = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return self.head(torch.tanh(x[:, 0]))


class AudioCnn(nn.Module):
    """Dai et al. 2017: strided one-dimensional convolutions on the waveform."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 8, 16, stride=4, padding=6, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.MaxPool1d(4),
            nn.Conv1d(8, 12, 3, padding=2, dilation=2),
            nn.GroupNorm(3, 12),
            nn.LeakyReLU(0.1, inplace=True),
            nn.AvgPool1d(2),
        )
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(-1))


class TabularMlp(nn.Module):
    """Batch norm and a different activation in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(20),
            nn.Linear(20, 32),
            nn.SELU(),
            nn.AlphaDropout(0.1),
            nn.Linear(32, 32),
            nn.BatchNorm1d(32),
            nn.LeakyReLU(),
            nn.Linear(32, 24),
            nn.ELU(alpha=0.7),
            nn.Linear(24, 24),
            nn.PReLU(24),
            nn.Linear(24, 16),
            nn.Softplus(),
            nn.Linear(16, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
