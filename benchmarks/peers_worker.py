"""One peer in its own environment: reads a job, quantizes with the peer's own code, writes what its weights became.

Started by ``against_peers.py`` with the peers' Python; it imports nothing of the workbench. A job is a folder:

    job.json       peer, bits, group, symmetric, steps, seed, threads, repeats, scope (layers or model), model (a folder)
    layers.npz     0.weight (outputs, inputs), 0.inputs (rows, inputs), 1.weight, ...     for scope layers
    tokens.npy     (samples, length) token ids that the model is calibrated on            for scope model

and gets ``weights.npz`` (the dequantized weights by number, or all parameters of the model by name, float32) and
``result.json`` (seconds, versions, notes, error) beside them. Who judges is the caller, with one code for everybody.
"""

# pyright: reportMissingImports=false
# (the peers live in another environment)

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Distributions whose versions are told.
PACKAGES = ("torch", "transformers", "hqq", "auto-round", "gptqmodel", "llmcompressor", "compressed-tensors")
PACKAGES = (*PACKAGES, "bitsandbytes", "gguf", "torchao")


def hqq_layer(weight: Any, inputs: Any, job: dict[str, Any]) -> Any:
    """HQQ's own solver with its defaults, groups along the inputs."""
    import torch
    from hqq.core.quantize import Quantizer

    codes, meta = Quantizer.quantize(
        weight, nbits=job["bits"], group_size=job["group"], axis=1, device="cpu", compute_dtype=torch.float32
    )
    return Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})


def bitsandbytes_layer(weight: Any, inputs: Any, job: dict[str, Any]) -> Any:
    """NF4 with bitsandbytes' blocks."""
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(weight, blocksize=job["group"], quant_type="nf4")
    return functional.dequantize_4bit(codes, state)


def gguf_layer(weight: Any, inputs: Any, job: dict[str, Any]) -> Any:
    """The gguf package's Q4_0."""
    import torch
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType.Q4_0
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))


def torchao_layer(weight: Any, inputs: Any, job: dict[str, Any]) -> Any:
    """Torchao's integer weights: round to nearest, or its scale-only HQQ."""
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm as Algorithm

    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{job['bits']}"),
        granularity=PerGroup(job["group"]),
        mapping_type=MappingType.SYMMETRIC if job["symmetric"] else MappingType.ASYMMETRIC,
        intx_choose_qparams_algorithm=Algorithm.HQQ_SCALE_ONLY if job["method"] == "hqq" else Algorithm.AFFINE,
    )
    return _torchao(weight, inputs, [config])


def torchao_tinygemm_layer(weight: Any, inputs: Any, job: dict[str, Any]) -> Any:
    """Torchao's ``Int4WeightOnlyConfig``, its default of four bits."""
    from torchao.quantization import Int4WeightOnlyConfig

    return _torchao(weight, inputs, [Int4WeightOnlyConfig(group_size=job["group"])])


def torchao_awq_layer(weight: Any, inputs: Any, job: dict[str, Any]) -> Any:
    """Torchao's AWQ: observe, then convert."""
    import torch
    from torchao.prototype.awq import AWQConfig
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    base = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{job['bits']}"), granularity=PerGroup(job["group"]))
    return _torchao(weight, inputs, [AWQConfig(base, step="prepare"), AWQConfig(base, step="convert")])


def _torchao(weight: Any, inputs: Any, configs: list[Any]) -> Any:
    from torchao.quantization import quantize_

    model = _linear(weight)
    for number, config in enumerate(configs):
        if number and inputs is not None:
            model(inputs)
        quantize_(model, config)
    return model[0].weight.dequantize()


def _linear(weight: Any) -> Any:
    import torch

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return torch.nn.Sequential(layer)


def gptqmodel_layer(weight: Any, inputs: Any, job: dict[str, Any]) -> Any:
    """GPTQModel's solver of one layer."""
    from gptqmodel.quantization.gptq import GPTQ

    layer = _linear(weight)[0]
    solver = GPTQ(layer, _gptqmodel_config(job))
    solver.quantizer.configure(perchannel=True)
    solver.add_batch(inputs[None], layer(inputs[None]))
    return solver.quantize()[0]


def _gptqmodel_config(job: dict[str, Any]) -> Any:
    from gptqmodel import QuantizeConfig

    return QuantizeConfig(
        bits=job["bits"],
        group_size=job["group"],
        sym=job["symmetric"],
        desc_act=False,
        act_group_aware=job["group"] > 0,  # its default; it refuses whole rows with it
        damp_percent=0.01,
        offload_to_disk=False,
    )


def gptqmodel_model(job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Quantize a whole model with GPTQModel."""
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    config = _gptqmodel_config(job)
    config.device = "cpu"
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tokens(job)]
    found = GPTQModel.load(job["model"], config, dtype=torch.float32)
    started = time.perf_counter()
    found.quantize(rows, batch_size=8)
    seconds = time.perf_counter() - started
    state = dict(load_model(job).state_dict())
    for name, module in found.model.named_modules():
        if hasattr(module, "dequantize_weight"):
            if module.qzero_format() == 1:  # files of this format hold zero points less one
                convert_gptq_v1_to_v2_format_module(module, bits=module.bits, pack_dtype=module.pack_dtype)
            state[f"{name}.weight"] = module.dequantize_weight().T
    return state, seconds


def auto_round_model(job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """AutoRound on the same samples, whole model, its default optimiser."""
    import torch
    from auto_round import AutoRound
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens(job)]
    model = load_model(job)
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job["model"]),
        bits=job["bits"],
        group_size=job["group"],
        sym=job["symmetric"],
        iters=job["steps"],
        seqlen=samples[0]["input_ids"].numel(),
        nsamples=len(samples),
        batch_size=8,
        dataset=DataLoader(samples, batch_size=8, shuffle=False),  # pyright: ignore[reportArgumentType]
        device_map="cpu",
        enable_torch_compile=False,
        seed=job["seed"],
    )
    started = time.perf_counter()
    found = rounding.quantize()
    seconds = time.perf_counter() - started
    model = found[0] if isinstance(found, tuple) else found
    return dict(model.state_dict()), seconds


def llmcompressor_gptq_model(job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """GPTQ of LLM Compressor, one shot over the whole model."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    return _one_shot(job, [GPTQModifier(config_groups=_groups(job), ignore=["lm_head"], dampening_frac=0.01)])


def llmcompressor_awq_model(job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """AWQ of LLM Compressor, one shot over the whole model; it pins memory, which only machines with an accelerator can."""
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    IntermediatesCache.pin_memory = lambda *_, **__: None
    job["notes"].append("its pinning of memory is switched off: without an accelerator it raises")
    return _one_shot(job, [AWQModifier(), QuantizationModifier(config_groups=_groups(job), ignore=["lm_head"])])


def _groups(job: dict[str, Any]) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": job["group"]} if job["group"] > 0 else {"strategy": "channel"}
    weights = {"num_bits": job["bits"], "type": "int", "symmetric": job["symmetric"], **strategy}
    return {"group_0": {"targets": ["Linear"], "weights": weights}}


def _one_shot(job: dict[str, Any], recipe: list[Any]) -> tuple[dict[str, Any], float]:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from datasets import Dataset
    from llmcompressor import oneshot

    rows = tokens(job)
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": [[1] * rows.shape[1]] * len(rows)})
    model = load_model(job)
    started = time.perf_counter()
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=rows.shape[1], num_calibration_samples=len(rows))
    seconds = time.perf_counter() - started
    state = {name: value for name, value in model.state_dict().items() if ".weight_" not in name}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None and hasattr(module, "weight_scale"):
            # AWQ leaves smoothed float weights with their scales: codes are only made when the model is saved.
            zero: Any = getattr(module, "weight_zero_point", None)
            state[f"{name}.weight"] = fake_quantize(module.weight.data, module.weight_scale, zero, scheme.weights)
    return state, seconds


#: Peers that quantize one layer: name -> function of (weight, inputs, job).
LAYERS: dict[str, Callable[..., Any]] = {
    "hqq": hqq_layer,
    "bitsandbytes": bitsandbytes_layer,
    "gguf": gguf_layer,
    "torchao": torchao_layer,
    "torchao-int4": torchao_tinygemm_layer,
    "torchao-awq": torchao_awq_layer,
    "gptqmodel": gptqmodel_layer,
}

#: Peers that quantize a whole model: name -> function of the job that returns all parameters and seconds.
MODELS: dict[str, Callable[..., Any]] = {
    "auto-round": auto_round_model,
    "gptqmodel": gptqmodel_model,
    "llmcompressor-gptq": llmcompressor_gptq_model,
    "llmcompressor-awq": llmcompressor_awq_model,
}


def tokens(job: dict[str, Any]) -> Any:
    """Return the calibration samples, int64 (samples, length)."""
    import torch

    return torch.from_numpy(np.load(Path(job["folder"]) / "tokens.npy").astype(np.int64))


def load_model(job: dict[str, Any]) -> Any:
    """Return the float model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, local_files_only=True)


def run_layers(job: dict[str, Any], each: Callable[..., Any]) -> tuple[dict[str, np.ndarray], float]:
    """Quantize the given layers, or all linear layers of the model where none are given; seconds: the best of the repeats."""
    import torch

    if job["scope"] == "model":
        model = load_model(job)
        state = dict(model.state_dict())
        given = [
            (f"{name}.weight", module.weight.detach(), None)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        ]
    else:
        state = {}
        arrays = np.load(Path(job["folder"]) / "layers.npz")
        numbers = sorted({name.partition(".")[0] for name in arrays.files}, key=int)
        given = [
            (number, torch.from_numpy(arrays[f"{number}.weight"]), torch.from_numpy(arrays[f"{number}.inputs"]))
            for number in numbers
        ]
    warm = torch.randn(128, 256), torch.randn(512, 256)  # first calls import, compile, allocate
    each(*warm, job)
    seconds = []
    for _ in range(job["repeats"]):
        started = time.perf_counter()
        for name, weight, inputs in given:
            state[name] = each(weight.clone(), inputs, job)
        seconds.append(time.perf_counter() - started)
    return {name: as_array(value) for name, value in state.items()}, min(seconds)


def as_array(value: Any) -> np.ndarray:
    """Return a tensor as a float32 array."""
    return np.ascontiguousarray(value.detach().float().cpu().numpy())


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job and return what is written to ``result.json``."""
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    job["notes"] = []
    found: dict[str, Any] = {"error": None, "seconds": None}
    peer = job["peer"]
    try:
        if job["scope"] == "model" and peer in MODELS:
            state, seconds = MODELS[peer](job)
            weights = {name: as_array(value) for name, value in state.items()}
        elif peer in LAYERS and (job["scope"] == "layers" or job["data_free"]):
            weights, seconds = run_layers(job, LAYERS[peer])
        else:
            raise NotImplementedError(f"{peer} offers no call for {job['scope']}")
        np.savez(Path(job["folder"]) / "weights.npz", **weights)  # type: ignore[arg-type]
        found["seconds"] = seconds
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        found["error"] = f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
    found["notes"] = job["notes"]
    found["versions"] = versions()
    return found


def versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    known = {}
    for name in PACKAGES:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return known


def main(folder: Path) -> None:
    """Read the job, do it, write the result."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault(
        "GPTQMODEL_CPU_WORKERS", "2"
    )  # its pool asks for two workers on machines with fewer cores too
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    job["folder"] = str(folder)
    (folder / "result.json").write_text(json.dumps(work(job), indent=1), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault(
        "GPTQMODEL_CPU_WORKERS", "2"
    )  # its pool asks for two workers on machines with fewer cores too
    main(Path(sys.argv[1]))
