"""Train ``data/tiny-gemma3``: a small Gemma 3 language model of Python source, with its own BPE tokenizer.

    python data/train_tiny_gemma3.py            # tokenizer, training (resumes after a kill), export, model card
    python data/train_tiny_gemma3.py --steps 20 --out try/tiny   # a quick look at the whole path

Everything is seeded. The weights are trained in float32 with bfloat16 matrix products and shipped as bfloat16; every
figure in the model card is measured on the shipped (rounded) weights.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import corpus
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SEED = 20261120
VOCABULARY = 4096
CONTEXT = 512
BATCH = 16
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]  # Gemma's order: pad 0, eos 1, bos 2


def make_config() -> Gemma3TextConfig:
    """Gemma 3 in miniature: five local layers to one global, QK-norm, GeGLU, tied embeddings, a window below the context."""
    return Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=CONTEXT,
        sliding_window=128,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the training modules only."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Encode every module as ``<bos> ... <eos>`` and join them into one stream of token ids."""
    parts = [[*ids, 1] for ids in tokenizer(texts)["input_ids"]]
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])


def batches(stream: np.ndarray, start: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (step, batch) for ever: each epoch cuts the stream at a new offset and visits the windows in a new order."""
    windows = (len(stream) - CONTEXT) // CONTEXT
    per_epoch = windows // BATCH
    step = start
    while True:
        epoch, position = divmod(step, per_epoch)
        generator = np.random.default_rng([SEED, epoch])
        offset = int(generator.integers(0, CONTEXT))
        order = generator.permutation(windows)
        for index in range(position, per_epoch):
            rows = [stream[offset + k * CONTEXT :][:CONTEXT] for k in order[index * BATCH : (index + 1) * BATCH]]
            yield step, torch.from_numpy(np.stack(rows).astype(np.int64))
            step += 1


def learning_rate(step: int, steps: int, peak: float = 2.5e-3, warm_up: int = 100) -> float:
    """Linear warm-up, a slow cosine, and over the last quarter a straight line to zero (the cool-down does most)."""
    slow = peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step - warm_up) / 2500))))
    cool_down = max(1, steps // 4)
    return min(1.0, (step + 1) / warm_up) * min(1.0, (steps - step) / cool_down) * slow


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)


@torch.no_grad()
def perplexity(
    model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], stride: int = CONTEXT // 2
) -> dict[str, float]:
    """Sliding-window perplexity per token (Hugging Face convention) and bits per byte over ``texts``."""
    total, tokens, characters = 0.0, 0, 0
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        characters += len(text.encode())
        scored = 1  # <bos> is given
        for begin in range(0, len(ids), stride):
            window = ids[begin : begin + CONTEXT]
            end = begin + len(window)
            if end <= scored:
                break
            logits = model(input_ids=window[None]).logits[0]
            first = scored - begin
            losses = torch.nn.functional.cross_entropy(logits[first - 1 : -1].float(), window[first:], reduction="sum")
            total += float(losses)
            tokens += end - scored
            scored = end
    return {"perplexity": math.exp(total / tokens), "tokens": tokens, "bits_per_byte": total / math.log(2) / characters}


def train(model: Gemma3ForCausalLM, stream: np.ndarray, steps: int, work: Path) -> list[dict[str, float]]:
    """Train for ``steps`` steps, saving a checkpoint every 100; return the log (step, loss, lr, seconds)."""
    optimizer = make_optimizer(model)
    checkpoint = work / "checkpoint.pt"
    log: list[dict[str, float]] = []
    first, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["steps"] == steps:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            first, log, spent = saved["step"], saved["log"], saved["seconds"]
            print(f"resuming at step {first}", flush=True)
    started, recent = time.perf_counter(), []
    model.train()
    for step, batch in batches(stream, first):
        if step >= steps:
            break
        rate = learning_rate(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(float(loss.detach()))
        if (step + 1) % 20 == 0 or step + 1 == steps:
            seconds = spent + time.perf_counter() - started
            log.append({"step": step + 1, "loss": sum(recent) / len(recent), "lr": rate, "seconds": seconds})
            print(f"step {step + 1:5d}  loss {log[-1]['loss']:.4f}  lr {rate:.2e}  {seconds:7.0f} s", flush=True)
            recent = []
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "steps": steps}
            partial = checkpoint.with_suffix(".partial")
            torch.save({**state, "log": log, "seconds": spent + time.perf_counter() - started}, partial)
            partial.replace(checkpoint)
    model.eval()
    return log


PROMPTS = [
    "def read_lines(path):",
    "class Stack:\n    def __init__(self):",
    "import os\nimport sys\n\n\ndef main(argv=None):",
]


@torch.no_grad()
def samples(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, length: int = 120) -> list[str]:
    """Sample one continuation of each prompt (temperature 0.7, top-k 40, seeded)."""
    texts = []
    for prompt in PROMPTS:
        torch.manual_seed(SEED)
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = model.generate(ids, max_new_tokens=length, do_sample=True, temperature=0.7, top_k=40)
        texts.append(tokenizer.decode(out[0], skip_special_tokens=True))
    return texts


def model_card(figures: dict, written: list[str]) -> str:
    """Return the model card: what it is, how it was made, what it scores, what it writes."""
    code = "\n\n".join(f"```python\n{text.rstrip()}\n```" for text in written)
    return f"""---
license: psf-2.0
language: [code]
library_name: transformers
---
# tiny-gemma3

A Gemma 3 language model small enough to ship in a repository, trained from scratch on the source text of Python's
standard library, so that every demo, test and notebook of the Quantization Workbench runs on weights that were really
trained. Made by `data/train_tiny_gemma3.py`; every number below was measured by that script on the shipped weights.

| what | value |
| --- | --- |
| architecture | `Gemma3ForCausalLM`: 6 layers (5 local, window 128; 1 global), width 256, 4 query heads on 1 key/value head of 64, GeGLU 768, QK-norm, tied embeddings |
| parameters | {figures["parameters"]:,} |
| vocabulary | {VOCABULARY} (byte-level BPE trained on the same modules) |
| context | {CONTEXT} tokens |
| training text | {figures["training_characters"]:,} characters, {figures["training_tokens"]:,} tokens ({figures["training_modules"]} modules of Python {figures["python"]}) |
| training | {figures["steps"]} steps of {BATCH} x {CONTEXT} tokens ({figures["epochs"]:.1f} epochs), AdamW, {figures["seconds"] / 60:.0f} minutes on {figures["device"]} |
| training loss, last 100 steps | {figures["training_loss"]:.3f} nats a token |
| **held-out perplexity** | **{figures["perplexity"]:.3f}** a token ({figures["held_out_tokens"]:,} tokens of modules never trained on; window {CONTEXT}, stride {CONTEXT // 2}) |
| held-out bits per byte | {figures["bits_per_byte"]:.3f} |
| weights | bfloat16 safetensors |

The held-out modules are frozen in `data/text/stdlib_held_out.txt`.

## What it writes

Sampled with temperature 0.7, top-k 40; the first lines of each are the prompt.

{code}

## Licence

The training text is Python's standard library, copyright the Python Software Foundation, under the
[PSF licence](https://docs.python.org/3/license.html). The weights and the held-out text are distributed under the same
terms. The model knows nothing but the style of that library: it is a specimen for quantization, not an assistant.
"""


def export(
    model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, figures: dict, log: list[dict], out: Path
) -> None:
    """Round to bfloat16, measure, and write model, tokenizer, log and card."""
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shipped = Gemma3ForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    measured = perplexity(shipped, tokenizer, corpus.held_out_texts())
    figures |= {
        "perplexity": measured["perplexity"],
        "held_out_tokens": measured["tokens"],
        "bits_per_byte": measured["bits_per_byte"],
    }
    (out / "training.json").write_text(json.dumps({"figures": figures, "log": log}, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(model_card(figures, samples(shipped, tokenizer)), encoding="utf-8")
    print(json.dumps(figures, indent=1))


def main() -> None:
    """Run the whole path; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--out", type=Path, default=HERE / "tiny-gemma3")
    arguments = parser.parse_args()
    work = HERE / ".training" / arguments.out.name
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    texts = corpus.training_texts()
    tokenizer = train_tokenizer(texts)
    stream = token_stream(tokenizer, texts)
    model = Gemma3ForCausalLM(make_config())
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(stream):,} tokens of {len(texts)} modules", flush=True)
    log = train(model, stream, arguments.steps, work)
    figures = {
        "parameters": parameters,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": "CPU",
        "training_modules": len(texts),
        "training_characters": sum(map(len, texts)),
        "training_tokens": len(stream),
        "steps": arguments.steps,
        "epochs": arguments.steps * BATCH * CONTEXT / len(stream),
        "seconds": log[-1]["seconds"],
        "training_loss": sum(row["loss"] for row in log[-5:]) / len(log[-5:]),
    }
    export(model, tokenizer, figures, log, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
