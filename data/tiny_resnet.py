"""TinyResNet: a residual network with BatchNorm and depthwise-separable blocks, for 8 x 8 grey images.

model = load(Path("data/tiny-resnet"))
logits = model(images)          # images (N, 1, 8, 8) in 0..1, logits (N, 10)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class TinyResNetConfig:
    """The network's sizes, as ``config.json`` holds them."""

    classes: int = 10
    image_size: int = 8
    widths: tuple[int, int, int] = (32, 64, 128)

    def to_dict(self) -> dict:
        return {"model_type": "tiny_resnet", "architectures": ["TinyResNet"], **asdict(self)}


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions of the same width, each with BatchNorm, around an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(y)))


class SeparableBlock(nn.Module):
    """A depthwise 3 x 3 convolution of stride 2 and a pointwise one to twice the channels, with a projected shortcut."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width_in, width_in, 3, stride=2, padding=1, groups=width_in, bias=False)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.pointwise = nn.Conv2d(width_in, width_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, stride=2, bias=False)
        self.bn_shortcut = nn.BatchNorm2d(width_out)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.depthwise(x)))
        return functional.relu(self.bn_shortcut(self.shortcut(x)) + self.bn2(self.pointwise(y)))


class TinyResNet(nn.Module):
    """Stem, residual, separable, residual, separable, mean over the image, linear head."""

    def __init__(self, config: TinyResNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or TinyResNetConfig()
        small, middle, large = self.config.widths
        self.stem = nn.Conv2d(1, small, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(small)
        self.blocks = nn.Sequential(
            ResidualBlock(small), SeparableBlock(small, middle), ResidualBlock(middle), SeparableBlock(middle, large)
        )
        self.head = nn.Linear(large, self.config.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        return self.head(self.blocks(x).mean(dim=(2, 3)))


def load(folder: Path) -> TinyResNet:
    """Rebuild the trained network from ``config.json`` and ``model.safetensors``, in evaluation mode."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = TinyResNetConfig(values["classes"], values["image_size"], tuple(values["widths"]))
    model = TinyResNet(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
