"""``integerize``: a float model, a recipe and calibration inputs in; a model that runs in integers out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from workbench.calibration.ranges import RangeObserver
from workbench.errors import IntegerError
from workbench.integer.codings import Planner, index_values
from workbench.integer.folding import fuse_activations
from workbench.integer.graph import Graph
from workbench.integer.model import IntegerModel
from workbench.integer.operator import Kind
from workbench.integer.operators import operator_of
from workbench.integer.running import float_values
from workbench.integer.semantics import Semantics, as_semantics
from workbench.quantization.recipe import FLOAT, Recipe, check_integer_activation

if TYPE_CHECKING:
    from workbench.checkpoints import Model

#: Kinds of non-linear operators.
KINDS = ("runtime", "table", "polynomial")


def integerize(
    model: Any,
    recipe: Recipe | str = "w8a8",
    calibration: Iterable[Any] | Any = None,
    *,
    semantics: Semantics | str = "litert-reference",
    kind: Kind = "table",
    progress: Callable[[float], None] | None = None,
) -> IntegerModel:
    """Return a model whose run between input quantizer and logits is integers only.

    The float graph is run on the calibration inputs to see every value's range; then every value gets a coding, weights
    and biases are quantized, all real scales become fixed-point multipliers, and non-linear operators their tables or
    polynomials.

    Args:
        model: a ``Graph`` of float nodes; a ``torch.nn.Module`` in evaluation mode (convolutional networks, traced by
            torch.fx); an opened ``Model``, a path or ``"demo:tiny-resnet"`` (BERT, Llama, Gemma 2 and 3 by their
            configuration).
        recipe: a ``Recipe``, or the name of a preset: ``w8a8``, ``w4a8``, ``w8a16``, ``w8a8-power``, ``w4a8-power``
            (those with a method, such as ``w4-nupes``, are for ``quantize_model``).
        calibration: model inputs, each as ``IntegerModel.run`` takes them: an array of images, a list of arrays of token
            ids, or texts for models that come with a tokenizer. Inputs run one after another: memory holds one.
        semantics: whose rounding.
        kind: ``table`` or ``polynomial`` for non-linear operators, or ``runtime`` for the semantics' own recipes.
        progress: told the finished fraction; may raise ``Cancelled``.

    Raises:
        IntegerError: an operator or architecture that is not covered (it is named), no calibration inputs, or a recipe
            with transforms or a method that learns weights.
        RecipeError: no such recipe, or a pattern that matches no layer.
        SemanticsError: no such semantics, or an operator that it does not have.
    """
    chosen = Recipe.of(recipe)
    named = as_semantics(semantics)
    if kind not in KINDS:
        message = f"non-linear operators are computed as {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {kind!r}"
        raise IntegerError(message)
    tell = progress or (lambda fraction: None)
    graph, name, read = float_graph(model)
    if not len(graph):
        message = f"{name} computes nothing: its graph has no operator"
        raise IntegerError(message)
    graph = fuse_activations(graph)
    chosen.check_patterns([node.name for node in graph.nodes])
    learnt = next((entry for entry in chosen.entries if entry.method is not None), None)
    if learnt is not None:
        message = f"integerize rounds weights to nearest; the recipe's entry for {learnt.pattern!r} asks for {learnt.method!r}"
        raise IntegerError(message)
    for entry in chosen.entries:
        if entry.activation is not None:
            check_integer_activation(entry.activation)
        if entry.weight == FLOAT:
            message = f"an integer model has no float weights; the recipe's entry for {entry.pattern!r} asks for them"
            raise IntegerError(message)
    if chosen.transforms:
        message = (
            f"integerize takes the float model as it is; the recipe asks for the transform {chosen.transforms[0]!r}"
        )
        raise IntegerError(message)
    inputs = read(calibration)
    if not inputs:
        message = "integerize needs calibration inputs: they show how far every value reaches"
        raise IntegerError(message)
    observers = observe(graph, inputs, lambda fraction: tell(0.7 * fraction))
    planner = Planner(graph, observers, chosen, named, kind)
    plan = planner.plan()
    nodes = []
    for place, node in enumerate(plan.graph.nodes):
        tell(0.7 + 0.3 * place / len(plan.graph))
        nodes.append(operator_of(node.operator).prepare(node, plan.values, planner.setting(node.name)))
    tell(1.0)
    return IntegerModel(
        plan.graph.with_nodes(nodes), plan.values, named, plan.graph, recipe=chosen, kind=kind, name=name
    )


def observe(
    graph: Graph, inputs: list[Any], progress: Callable[[float], None] | None = None
) -> dict[str, RangeObserver]:
    """Run inputs through a float graph and return what was seen of each value that is not an index.

    Args:
        graph: of float nodes.
        inputs: each as a run takes them.
        progress: told the finished fraction before each node; may raise ``Cancelled``.
    """
    indices = index_values(graph)
    observers = {name: RangeObserver() for name in graph.values if name not in indices}
    total = max(len(inputs) * len(graph), 1)
    done = 0

    def step() -> None:
        nonlocal done
        if progress is not None:
            progress(done / total)
        done += 1

    for each in inputs:
        for name, array in float_values(graph, each, until=step):
            if name in observers:
                observers[name].update(array)
    return observers


def float_graph(model: Any) -> tuple[Graph, str, Callable[[Any], list[Any]]]:
    """Return a model's float graph, its name, and the function that reads its calibration inputs.

    Raises:
        IntegerError: an architecture that is not covered.
    """
    if isinstance(model, Graph):
        return model, "graph", plain_inputs
    if _is_module(model) and not hasattr(model, "config_class"):
        from workbench.integer.cnn import build_graph, check_graph

        graph = build_graph(model)

        def checked(calibration: Any) -> list[Any]:
            inputs = plain_inputs(calibration)
            for each in inputs[:1]:
                check_graph(model, graph, each)
            return inputs

        return graph, type(model).__name__, checked
    return _opened(model)


def plain_inputs(calibration: Any) -> list[Any]:
    """Return calibration inputs as a list of runs: an array (or mapping, or tuple) is one run, a list several."""
    if calibration is None:
        return []
    if hasattr(calibration, "shape") or isinstance(calibration, Mapping | tuple):
        return [calibration]
    if not isinstance(calibration, Iterable) or isinstance(calibration, str | bytes):
        message = f"inputs of this model are arrays of numbers, not {type(calibration).__name__}"
        raise IntegerError(message)
    return list(calibration)


def _is_module(model: object) -> bool:
    return any(
        base.__module__ == "torch.nn.modules.module" and base.__name__ == "Module" for base in type(model).__mro__
    )


def _opened(source: Any) -> tuple[Graph, str, Callable[[Any], list[Any]]]:
    """Ask the module of the architecture: its ``build_graph(model)`` and ``calibration_inputs(model, calibration)``."""
    from workbench.checkpoints import open_model
    from workbench.resources import resolve_source

    model: Model = open_model(resolve_source(source) if isinstance(source, str) else source)
    kind = str(model.config.get("model_type", ""))
    if kind == "tiny_resnet":
        from workbench.integer.cnn import tiny_resnet_graph

        return tiny_resnet_graph(model), model.name, plain_inputs
    if kind == "bert":
        from workbench.integer import bert as builder
    else:
        from workbench.integer import decoder as builder
    return builder.build_graph(model), model.name, lambda calibration: builder.calibration_inputs(model, calibration)
