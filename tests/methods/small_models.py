"""Models small enough for tests of whole runs: a Llama folder that streams lazily, and a module in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from workbench.calibration.data import Calibration
from workbench.calibration.runnable import Batch


def llama_folder(folder: Path, *, tied: bool = False, layers: int = 2) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.15)
    model.save_pretrained(folder)
    (folder / "LICENSE").write_text("do as you like")
    return folder


def token_calibration(*, batches: int = 2, length: int = 12) -> Calibration:
    generator = torch.Generator().manual_seed(1)
    made = [
        Batch((), {"input_ids": torch.randint(0, 64, (3, length), generator=generator), "use_cache": False})
        for _ in range(batches)
    ]
    return Calibration.from_loader(made)


class Chain(torch.nn.Module):
    """Three linear layers with a norm; each layer is a block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(12, 16, bias=False)
        self.norm = torch.nn.LayerNorm(16)
        self.second = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(self.norm(self.first(x)))))


def chain() -> Chain:
    torch.manual_seed(2)
    return Chain().eval()


def row_calibration(rows: int = 60) -> Calibration:
    return Calibration.from_loader([torch.randn(rows, 12, generator=torch.Generator().manual_seed(3))])
