"""Networks of kinds that many people train, small."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORDS = 60


class Bert(nn.Module):
    """Words, positions and segments, and a mask that is added before softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS, 16, padding_idx=0)
        self.position, self.segment = nn.Embedding(32, 16), nn.Embedding(2, 16)
        self.norm, self.last = nn.LayerNorm(16), nn.Linear(16, 4)
        self.mix, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.register_buffer("position_ids", torch.arange(32).unsqueeze(0))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        rows, length = input_ids.shape
        places = self.position(self.position_ids[:, :length])
        x = self.norm(self.word(input_ids) + places + self.segment(token_type_ids))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -3.4028234663852886e38
        q, k, v = self.mix(x).view(rows, length, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-1, -2)) / 2 + mask
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, 16))
        return self.last(torch.tanh(x[:, 0]))


class TextCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 12)
        self.convs = nn.ModuleList(nn.Conv1d(12, 8, size) for size in (2, 3, 4))
        self.last = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x).transpose(1, 2)
        found = [F.relu(conv(x)).max(dim=2)[0] for conv in self.convs]
        return self.last(F.dropout(torch.cat(found, 1), 0.5, self.training))


class FourierText(nn.Module):
    """Mixes words by a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(WORDS, 8), nn.LayerNorm(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        mixed = torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real
        return self.last(self.norm(x + mixed).mean(1))


class MelSpectrogram(nn.Module):
    """Sound, its spectrogram and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.register_buffer("mel", torch.rand(33, 12))
        self.conv, self.norm, self.last = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 64, 32, window=self.window, return_complex=True)
        power = torch.matmul((spectrum.abs() ** 2).transpose(1, 2), self.mel)
        x = self.norm(self.conv(torch.log(power + 1e-6)[:, None]))
        return self.last(F.relu(x).mean((2, 3)))


class Spectrum(nn.Module):
    """A Fourier transform of a length that is no power of two."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(401, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.log1p(torch.fft.rfft(x).abs()))


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(200, 10)
        )
        self.last = nn.Linear(10, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.last((self.branch(left) - self.branch(right)).abs())


class Capsules(nn.Module):
    """Squash, and two rounds of routing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 5, 2)
        self.weight = nn.Parameter(torch.randn(100, 4, 4, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).reshape(x.shape[0], 4, 4, -1).permute(0, 3, 1, 2)
        votes = torch.einsum("nia,iabc->nibc", _squash(x.reshape(x.shape[0], -1, 4)), self.weight)
        routing = torch.zeros(x.shape[0], votes.shape[1], 4, device=x.device)
        poses = torch.zeros(())
        for _ in range(2):
            poses = _squash((routing.softmax(2)[..., None] * votes).sum(1))
            routing = routing + (votes * poses[:, None]).sum(-1)
        return poses.norm(dim=-1)


def _squash(x: Tensor) -> Tensor:
    size = (x * x).sum(-1, keepdim=True)
    return x * size / (1 + size) / torch.sqrt(size + 1e-8)


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Conv2d(1, 4, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())
        self.move, self.conv = nn.Linear(144, 6), nn.Conv2d(1, 4, 3)
        self.last = nn.Linear(4, 3)
        self.move.weight.data.mul_(0.1)
        self.move.bias.data.copy_(torch.tensor([1.0, 0.0, 0.03, 0.0, 1.0, 0.05]))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.move(self.locate(x)).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        return self.last(
            F.relu(self.conv(F.grid_sample(x, grid, align_corners=False))).mean((2, 3))
        )


class Coordinates(nn.Module):
    """Two more channels tell each pixel where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(5, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, _, height, width = x.shape
        y = torch.linspace(-1, 1, height).view(1, 1, height, 1).expand(rows, 1, height, width)
        z = torch.linspace(-1, 1, width).view(1, 1, 1, width).expand(rows, 1, height, width)
        return self.last(F.relu(self.conv(torch.cat([x, y, z], 1))).mean((2, 3)))


class Standardised(nn.Module):
    """Normalises its weights as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        variance, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (weight - mean) * torch.rsqrt(variance * 27 + 1e-4)
        return self.last((F.gelu(F.conv2d(x, weight, self.conv.bias)) * 1.7015).mean((2, 3)))


class ResponseNormalised(nn.Module):
    """A block with global response normalisation and a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8, eps=1e-6)
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.wide, self.narrow, self.last = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 4)
        self.gain, self.scale = nn.Parameter(torch.randn(32)), nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        response = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        y = self.gain * (y * (response / (response.mean(-1, keepdim=True) + 1e-6))) + y
        return self.last((x + (self.narrow(y) * self.scale).permute(0, 3, 1, 2)).mean([-2, -1]))


class Perceiver(nn.Module):
    """Learnt latents attend to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 8))
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
        latents = latents + self.cross(latents, x, x)[0]
        mixed, _ = self.own(latents, latents, latents, need_weights=False)
        return self.last((latents + mixed).mean(1))


class Unfolded(nn.Module):
    """Attention over patches that are unfolded and folded back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 24)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        patches = F.unfold(x, 2, stride=2).view(x.shape[0], 8, 4, 64).permute(0, 2, 3, 1)
        q, k, v = self.mix(patches).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2)
        back = F.fold(mixed.reshape(x.shape[0], 32, 64), (16, 16), 2, stride=2)
        return self.last(F.silu(x + back).mean((2, 3)))


class Experts(nn.Module):
    """The two best of four experts, chosen for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(12, 4), nn.Linear(10, 3)
        self.weight = nn.Parameter(torch.randn(4, 12, 10) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = torch.topk(self.gate(x), 2, dim=-1)
        y = torch.einsum("nd,nkdh->nkh", x, self.weight[chosen])
        return self.last((F.relu(y) * scores.softmax(-1)[..., None]).sum(1))


class Averaged(nn.Module):
    """The same network on three views, stacked along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        views = torch.cat([x, torch.flip(x, [3]), torch.roll(x, (1, 1), (2, 3))], 0)
        return self.net(views).view(3, -1, 4).mean(0)


class Ensemble(nn.Module):
    """The mean of three networks' probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(2))
            for _ in range(3)
        )
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = [torch.softmax(self.last(member(x).mean(2)), 1) for member in self.members]
        return torch.stack(found).mean(0)


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(3, 6, 3, padding=1),
            nn.BatchNorm3d(6),
            nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(6, 6, (3, 1, 1)),
            nn.AdaptiveAvgPool3d(1),
        )
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.net(x).flatten(1))


class Windows(nn.Module):
    """Attention in shifted windows, with an indexed table of relative places."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix, self.last = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24), nn.Linear(8, 4)
        self.table = nn.Parameter(torch.randn(49, 2))
        self.register_buffer("index", torch.randint(0, 49, (16, 16)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.patch(x), shifts=(-2, -2), dims=(2, 3))
        rows, width, height, _ = x.shape
        cut = x.view(rows, width, height // 4, 4, height // 4, 4).permute(0, 2, 4, 3, 5, 1)
        q, k, v = self.mix(cut.reshape(-1, 16, 8)).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        places = self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1)
        mixed = ((q @ k.transpose(-2, -1)) * 0.5 + places).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).reshape(rows, height // 4, height // 4, 4, 4, width)
        mixed = mixed.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
        return self.last((x + mixed).mean((2, 3)))
