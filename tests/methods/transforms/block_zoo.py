"""Small blocks of many families with real inputs flowing through them, as ``BlockTask``s."""

from __future__ import annotations

import copy
from functools import cache

import torch
import transformers

from workbench.calibration.statistics import LayerStatistics
from workbench.methods.task import BlockTask, LayerTask
from workbench.methods.transforms.layer_axes import is_linear, is_plain_convolution, rows_of
from workbench.resources import demo_path

COMMON = {"vocab_size": 80, "hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
DECODER = {"intermediate_size": 96, "num_attention_heads": 4, "tie_word_embeddings": False}


def _settings(family: str):
    t = transformers
    if family == "llama":
        return t.LlamaForCausalLM, t.LlamaConfig(**COMMON, **DECODER, num_key_value_heads=2)
    if family == "llama-mha":
        return t.LlamaForCausalLM, t.LlamaConfig(
            **COMMON, **DECODER, num_key_value_heads=4, attention_bias=True, mlp_bias=True
        )
    if family == "mistral":
        return t.MistralForCausalLM, t.MistralConfig(**COMMON, **DECODER, num_key_value_heads=2, head_dim=16)
    if family == "qwen2":
        return t.Qwen2ForCausalLM, t.Qwen2Config(
            **COMMON, **{**DECODER, "tie_word_embeddings": True}, num_key_value_heads=2
        )
    if family == "qwen3":
        return t.Qwen3ForCausalLM, t.Qwen3Config(**COMMON, **DECODER, num_key_value_heads=2, head_dim=12)
    if family == "phi3":
        return t.Phi3ForCausalLM, t.Phi3Config(**COMMON, **DECODER, num_key_value_heads=4, pad_token_id=0)
    if family == "bert":
        return t.BertModel, t.BertConfig(**COMMON, intermediate_size=96, num_attention_heads=4)
    if family == "gpt2":
        return t.GPT2LMHeadModel, t.GPT2Config(vocab_size=80, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    assert family == "opt"
    return t.OPTForCausalLM, t.OPTConfig(**COMMON, ffn_dim=96, num_attention_heads=4, word_embed_proj_dim=48)


@cache
def _state(family: str):
    """Weights of a family with gains and biases that are not 1 and 0, and channels that stand out."""
    torch.manual_seed(0)
    kind, config = _settings(family)
    module = kind(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.data += (0.3 if value.ndim == 1 else 0.05) * noise
        if value.ndim == 1 and "norm" in name.lower() and "weight" in name:
            value.data[::11] *= 6.0
    return module.state_dict()


def model(family: str):
    if family == "gemma3":
        found = transformers.AutoModelForCausalLM.from_pretrained(str(demo_path("tiny-gemma3")), dtype=torch.float32)
        return found.eval()
    kind, config = _settings(family)
    found = kind(config).eval()
    found.load_state_dict(_state(family))
    return found


def blocks_of(module) -> list:
    for path in ("model.layers", "encoder.layer", "transformer.h", "model.decoder.layers"):
        try:
            return list(module.get_submodule(path))
        except AttributeError:
            continue
    raise AssertionError


def tokens(module, batches: int = 2, length: int = 12):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, module.config.vocab_size, (3, length), generator=generator) for _ in range(batches)]


@cache
def _captured(family: str, number: int):
    """A block, and what the model's batches give it."""
    whole = model(family)
    block = blocks_of(whole)[number]
    inputs = []

    def hook(_, arguments, options):
        inputs.append((arguments, {**options, "use_cache": False} if "use_cache" in options else dict(options)))

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        for ids in tokens(whole):
            whole(ids, **({} if family == "bert" else {"use_cache": False}))
    handle.remove()
    return block, inputs


def block_task(
    family: str, number: int = 0, grid: str = "uniform:bits=4", statistics: bool = True, **settings
) -> BlockTask:
    """One block of a model, a copy of its own, with what the model's batches give it."""
    block, inputs = _captured(family, number)
    return task_of(copy.deepcopy(block), inputs, grid, statistics, **settings)


def task_of(block, inputs, grid="uniform:bits=4", statistics=True, granularity="channel", **settings) -> BlockTask:
    seen: dict[str, list] = {}
    layers = {path: part for path, part in block.named_modules() if is_linear(part) or is_plain_convolution(part)}

    def watch(path):
        return lambda _, arguments: seen.setdefault(path, []).append(arguments[0].detach().flatten(0, -2))

    hooks = [part.register_forward_pre_hook(watch(path)) for path, part in layers.items() if is_linear(part)]
    targets = []
    with torch.no_grad():
        for arguments, options in inputs:
            out = block(*arguments, **options)
            targets.append(out if isinstance(out, torch.Tensor) else out[0])
    for each in hooks:
        each.remove()
    tasks = {}
    for path, part in layers.items():
        known = None
        if statistics and path in seen:
            known = LayerStatistics.from_inputs(path, torch.cat(seen[path]).numpy())
        bias = None if part.bias is None else part.bias.detach().numpy().copy()
        weight = rows_of(part).numpy().copy()
        tasks[path] = LayerTask.of(
            weight, grid, granularity=granularity, statistics=known, bias=bias, name=path, **settings
        )
    return BlockTask("block", block, tasks, {path: path for path in tasks}, inputs, inputs, targets)


def outputs(task: BlockTask) -> list:
    with torch.no_grad():
        found = [task.module(*arguments, **options) for arguments, options in task.inputs]
    return [each if isinstance(each, torch.Tensor) else each[0] for each in found]


def moved(task: BlockTask, before: list) -> float:
    """Largest relative change of the block's outputs, by norm."""
    after = outputs(task)
    return max(float((a - b).double().norm() / b.double().norm()) for a, b in zip(after, before, strict=True))
