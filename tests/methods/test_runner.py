"""Whole models by a recipe: what is quantized and what is not, the stream that stays true, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import chain, llama_folder, row_calibration, token_calibration

from workbench.calibration.statistics import LayerStatistics
from workbench.checkpoints import open_model
from workbench.errors import Cancelled, QuantizationError, RecipeError
from workbench.methods import parse_method
from workbench.methods.recipes import check_methods
from workbench.methods.runner import quantize_model
from workbench.methods.task import LayerTask
from workbench.quantization import quantize
from workbench.quantization.recipe import PRESETS, Entry, Recipe


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("llama") / "small-llama")


def recipe(*entries, **more):
    return Recipe(entries or (Entry("*", weight="uniform:bits=4", method="gptq"),), **more)


def outputs(module: Any, calibration):
    with torch.no_grad():
        found = [module(*batch.arguments, **batch.options) for batch in calibration.batches]
    return torch.cat(
        [getattr(each, "logits", each).reshape(-1, 64 if hasattr(each, "logits") else 5) for each in found]
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_methods_and_transforms_that_exist(name):
    check_methods(PRESETS[name])


def test_data_free_recipes_go_layer_by_layer(llama):
    found = quantize_model(llama, recipe(Entry("*", weight="uniform:bits=4", method="rtn-clip")))
    model = open_model(llama)
    assert set(found.layers) == {layer.name for layer in model.layers.values() if layer.kind == "linear"}
    assert found.calibration == ""
    for name, result in found.layers.items():
        expected = quantize(model[name], "uniform:bits=4", scale="mse")
        np.testing.assert_array_equal(result.quantized.codes, expected.codes)
    state = found.module().state_dict()
    name = "model.layers.1.mlp.down_proj"
    np.testing.assert_array_equal(state[f"{name}.weight"].numpy(), found.layers[name].quantized.dequantize())
    np.testing.assert_array_equal(
        state["model.embed_tokens.weight"].numpy(), np.asarray(model["model.embed_tokens"].weight)
    )


def test_every_layer_sees_what_the_model_quantized_so_far_gives():
    """The oracle: quantize the layers one after another by hand, on inputs from the module quantized so far."""
    calibration = row_calibration()
    module: Any = chain()
    chosen = recipe(Entry("*", weight="uniform:bits=3", method="gptq"))
    found = quantize_model(module, chosen, calibration)
    expected = chain()
    given = calibration.batches[0].arguments[0]
    for name in ("first", "second", "head"):
        layer: Any = expected.get_submodule(name)
        caught = []
        handle = layer.register_forward_pre_hook(lambda _, arguments, caught=caught: caught.append(arguments[0]))
        with torch.no_grad():
            expected(given)
        handle.remove()
        statistics = LayerStatistics.from_inputs(name, caught[0].numpy())
        task = LayerTask.of(layer.weight.detach(), "uniform:bits=3", statistics=statistics, name=name)
        result = parse_method("gptq").quantize_layer(task)
        np.testing.assert_allclose(found.layers[name].quantized.dequantize(), result.quantized.dequantize(), atol=1e-6)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(result.quantized.dequantize()))
    with torch.no_grad():
        torch.testing.assert_close(found.module()(given), expected(given), atol=1e-5, rtol=1e-5)
    assert not torch.equal(module.first.weight, dict(found.module().named_parameters())["first.weight"]), (
        "the model itself stays as it was"
    )


def test_exceptions_of_the_recipe_are_kept(llama):
    chosen = recipe(
        Entry("*", weight="uniform:bits=4", method="gptq"),
        Entry("*.mlp.*", weight="power:bits=3,exponent=search", method="powerquant"),
        Entry("*.q_proj", granularity="group:8", scale="mse", method="rtn"),
        Entry("lm_head", weight="float"),
    )
    found = quantize_model(llama, chosen, token_calibration())
    assert "lm_head" not in found.layers
    assert len(found.layers) == 14
    q = found.layers["model.layers.0.self_attn.q_proj"]
    assert (q.method, str(q.quantized.granularity)) == ("rtn", "group:8")
    assert found.layers["model.layers.1.mlp.up_proj"].quantized.grid.family == "power"
    assert found.layers["model.layers.0.self_attn.v_proj"].gain_db > 0.0


def test_one_exponent_for_the_model(llama):
    chosen = recipe(Entry("*", weight="power:bits=4", method="powerquant:share=model"))
    grids = {str(result.quantized.grid) for result in quantize_model(llama, chosen).layers.values()}
    assert len(grids) == 1


@pytest.mark.parametrize("sequential", [False, True])
def test_transforms_and_codings_are_in_the_module(llama, sequential):
    calibration = token_calibration()
    chosen = recipe(
        Entry("*", weight="uniform:bits=8", method="rtn", activation="int8@token"),
        Entry("*.down_proj", activation="uniform:bits=8", ranges="minmax"),
        transforms=("smoothquant:alpha=0.5",),
    )
    found = quantize_model(llama, chosen, calibration, sequential=sequential)
    assert any(name.endswith("layernorm.weight") for name in found.changed)
    assert set(found.ranges) == {f"model.layers.{number}.mlp.down_proj" for number in (0, 1)}
    module = found.module()
    hooks = [path for path, child in module.named_modules() if child._forward_pre_hooks]
    assert len(hooks) == len(found.layers) == 15
    from workbench.calibration.hosts import whole_host

    true = outputs(whole_host(open_model(llama)).module, calibration)
    gap = outputs(module, calibration) - true
    assert float(gap.square().mean() / true.square().mean()) < 5e-3


def test_a_rotated_residual_stream_keeps_the_function(llama):
    calibration = token_calibration()
    chosen = recipe(Entry("*", weight="uniform:bits=16", method="rtn"), transforms=("rotation:residual=true",))
    found = quantize_model(llama, chosen, calibration)
    from workbench.calibration.hosts import whole_host

    true = outputs(whole_host(open_model(llama)).module, calibration)
    torch.testing.assert_close(outputs(found.module(), calibration), true, atol=2e-2, rtol=1e-2)
    assert "model.embed_tokens.weight" in found.changed
    assert not set(found.changed) & {f"{name}.weight" for name in found.layers}


def test_methods_of_whole_blocks_learn_their_layers_together(llama):
    chosen = recipe(
        Entry("*.layers.*", weight="uniform:bits=3", method="brecq:steps=3"), Entry("*.o_proj", method="rtn")
    )
    steps = []
    found = quantize_model(
        llama, chosen, token_calibration(), on_step=lambda name, step, total, loss: steps.append(name)
    )
    assert len(found.layers) == 14
    assert found.layers["model.layers.0.self_attn.o_proj"].method == "rtn"
    assert steps


def test_biases_are_corrected_and_added():
    found = quantize_model(
        chain(),
        recipe(Entry("*", weight="uniform:bits=2", method="rtn"), transforms=("bias-correction",)),
        row_calibration(),
    )
    assert set(found.changed) == {"first.bias", "second.bias", "head.bias"}
    given = row_calibration().batches[0].arguments[0]
    with torch.no_grad():
        made, true = found.module()(given), chain()(given)
        plain = quantize_model(
            chain(), recipe(Entry("*", weight="uniform:bits=2", method="rtn")), row_calibration()
        ).module()(given)
    assert float((made - true).mean(0).abs().max()) < float((plain - true).mean(0).abs().max())


def test_embeddings_and_tied_heads_only_where_they_are_named(tmp_path):
    folder = llama_folder(tmp_path / "tied", tied=True, layers=1)
    plain = quantize_model(folder, recipe(), token_calibration())
    assert not {"lm_head", "model.embed_tokens"} & set(plain.layers)
    chosen = recipe(
        Entry("*", weight="uniform:bits=4", method="rtn"),
        Entry("lm_head", weight="uniform:bits=8"),
        Entry("*.embed_tokens", weight="uniform:bits=6"),
    )
    for calibration in (None, token_calibration()):
        found = quantize_model(folder, chosen, calibration)
        state = found.module().state_dict()
        for name, bits in (("lm_head", 8), ("model.embed_tokens", 6)):
            assert found.layers[name].quantized.grid.bits == bits
            np.testing.assert_array_equal(state[f"{name}.weight"].numpy(), found.layers[name].quantized.dequantize())
    with pytest.raises(QuantizationError, match="is an embedding"):
        quantize_model(folder, chosen.but("*.embed_tokens", method="gptq"), token_calibration())


def test_layers_that_inputs_do_not_reach_are_told():
    module = chain()
    module.spare = torch.nn.Linear(4, 4)
    found = quantize_model(module, recipe(), row_calibration())
    assert "spare" not in found.layers
    assert "spare" in found.notes[0]
    with pytest.raises(QuantizationError, match="reaches none of the layers"):
        quantize_model(module, recipe(Entry("spare", method="gptq")), row_calibration())


def test_listeners_hear_and_stop(llama):
    told, heard = [], []
    quantize_model(
        llama,
        recipe(),
        token_calibration(),
        progress=lambda fraction, label: told.append(fraction),
        on_layer=heard.append,
    )
    assert told == sorted(told)
    assert len(heard) == 15

    def stop(result):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        quantize_model(llama, recipe(), token_calibration(), on_layer=stop)


def test_the_seed_decides(llama):
    chosen = recipe(Entry("*.mlp.*", weight="uniform:bits=3", method="adaround:steps=4"))
    one, other = (quantize_model(llama, chosen, token_calibration(), seed=5) for _ in range(2))
    for name in one.layers:
        np.testing.assert_array_equal(one.layers[name].quantized.codes, other.layers[name].quantized.codes)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: recipe(Entry("*", method="gptqq")), RecipeError, "did you mean gptq"),
        (lambda: recipe(transforms=("smooth",)), RecipeError, "no transform is called 'smooth'"),
        (lambda: recipe(Entry("*"), Entry("haed")), RecipeError, "did you mean 'head'"),
        (lambda: recipe(Entry("*", weight="float")), QuantizationError, "leaves every layer of Chain float"),
        (lambda: recipe(Entry("*", weight="nf4", method="powerquant")), QuantizationError, "has none"),
        (lambda: "w4-nupse", RecipeError, "did you mean w4-nupes"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, error, words):
    with pytest.raises(error, match=words) as caught:
        quantize_model(chain(), make(), row_calibration())
    assert "\n" not in str(caught.value)


def test_a_calibration_of_another_kind_is_refused_in_one_sentence():
    with pytest.raises(QuantizationError, match="list is none"):
        quantize_model(chain(), recipe(), [torch.ones(2, 6)])  # type: ignore[arg-type]
