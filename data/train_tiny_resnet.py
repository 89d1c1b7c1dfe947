"""Train ``data/tiny-resnet``: a small residual network on scikit-learn's handwritten digits.

    python data/train_tiny_resnet.py                 # about a minute on one core
    python data/train_tiny_resnet.py --out try/tiny

Everything is seeded. The split is fixed here; the held-out quarter is used once, for the figure in the model card.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tiny_resnet import TinyResNet, TinyResNetConfig, load
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
SEED = 20261120
HELD_OUT = 0.25
BATCH = 64
EPOCHS = 60
PEAK_RATE = 0.01


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images (N, 1, 8, 8) in 0..1 and labels, then the held-out ones; stratified, always the same split."""
    raw = load_digits()
    images = (raw.images / 16.0).astype(np.float32)[:, None]
    parts = train_test_split(images, raw.target, test_size=HELD_OUT, stratify=raw.target, random_state=SEED)
    train_x, held_x, train_y, held_y = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return train_x, train_y.long(), held_x, held_y.long()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image by up to 10 degrees, resize it by up to 10 % and move it by up to 0.8 pixels."""
    count = len(images)
    unit = 2 * torch.rand(4, count, generator=generator) - 1
    angle, size = unit[0] * math.radians(10), 1 + 0.1 * unit[1]
    shift = unit[2:] * 0.8 * 2 / images.shape[-1]  # affine_grid's image is 2 wide
    cos, sin = size * torch.cos(angle), size * torch.sin(angle)
    matrices = torch.stack([torch.stack([cos, -sin, shift[0]]), torch.stack([sin, cos, shift[1]])]).permute(2, 0, 1)
    where = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, where, align_corners=False)


@torch.no_grad()
def accuracy(model: TinyResNet, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that the network names rightly."""
    return float((model(images).argmax(1) == labels).float().mean())


def train(model: TinyResNet, images: Tensor, labels: Tensor, epochs: int) -> list[dict[str, float]]:
    """SGD with momentum under a one-cycle rate; return (epoch, loss, training accuracy on augmented images)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 10 * PEAK_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    log = []
    for epoch in range(epochs):
        model.train()
        losses, right = 0.0, 0
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            logits = model(augment(images[rows], generator))
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += float(loss.detach()) * len(rows)
            right += int((logits.argmax(1) == labels[rows]).sum())
        log.append({"epoch": epoch + 1, "loss": losses / len(images), "accuracy": right / len(images)})
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}  loss {log[-1]['loss']:.4f}  accuracy {log[-1]['accuracy']:.4f}", flush=True)
    return log


def model_card(figures: dict) -> str:
    """Return the model card; every number comes from ``figures``."""
    return f"""---
license: apache-2.0
library_name: pytorch
datasets: [optical-recognition-of-handwritten-digits]
---
# tiny-resnet

A residual network for 8 x 8 handwritten digits, small enough to ship in a repository: ordinary and depthwise-separable
convolutions, BatchNorm after each, so that the Quantization Workbench has trained convolutions to show. The network is
`data/tiny_resnet.py`; `data/train_tiny_resnet.py` trains it and measured every number below on the shipped weights.

| what | value |
| --- | --- |
| architecture | stem 3x3, residual block, depthwise-separable block (stride 2), residual block, depthwise-separable block (stride 2), mean, linear; widths {", ".join(map(str, figures["widths"]))} |
| parameters | {figures["parameters"]:,} |
| training images | {figures["training_images"]:,} (turned up to 10 degrees, resized up to 10 %, moved up to 0.8 pixels) |
| training | {figures["epochs"]} epochs of SGD with momentum, one-cycle rate, label smoothing 0.05, {figures["seconds"]:.0f} s on a CPU |
| training loss, last epoch | {figures["training_loss"]:.4f} nats (with label smoothing, on augmented images) |
| training accuracy, plain images | {100 * figures["training_accuracy"]:.2f} % |
| **held-out accuracy** | **{100 * figures["held_out_accuracy"]:.2f} %** ({figures["held_out_errors"]} wrong of {figures["held_out_images"]}) |
| weights | float32 safetensors |

The held-out images are a quarter of the data, stratified by digit, chosen by the seed in the script.

## Licence

The weights: Apache-2.0. The images: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine
Learning Repository, 1998 ([doi:10.24432/C50P49](https://doi.org/10.24432/C50P49), CC BY 4.0), as scikit-learn ships them.
"""


def export(model: TinyResNet, out: Path) -> TinyResNet:
    """Write weights and config; return the network as anyone will load it."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1) + "\n", encoding="utf-8")
    return load(out)


def main() -> None:
    """Run the whole path; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=HERE / "tiny-resnet")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    train_x, train_y, held_x, held_y = digits()
    model = TinyResNet(TinyResNetConfig())
    started = time.perf_counter()
    log = train(model, train_x, train_y, arguments.epochs)
    seconds = time.perf_counter() - started
    shipped = export(model, arguments.out)
    held_out_accuracy = accuracy(shipped, held_x, held_y)
    figures = {
        "widths": list(model.config.widths),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_images": len(train_x),
        "epochs": arguments.epochs,
        "seconds": seconds,
        "torch": torch.__version__,
        "training_loss": log[-1]["loss"],
        "training_accuracy": accuracy(shipped, train_x, train_y),
        "held_out_images": len(held_x),
        "held_out_accuracy": held_out_accuracy,
        "held_out_errors": round((1 - held_out_accuracy) * len(held_x)),
    }
    (arguments.out / "training.json").write_text(
        json.dumps({"figures": figures, "log": log}, indent=1) + "\n", encoding="utf-8"
    )
    (arguments.out / "README.md").write_text(model_card(figures), encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
