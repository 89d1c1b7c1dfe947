"""Convolutional networks as float graphs: torch.fx traces the module, BatchNorm is folded away."""

from __future__ import annotations

import operator as python_operator
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import IntegerError
from workbench.integer.folding import fold_batch_norms
from workbench.integer.graph import Graph, Node
from workbench.integer.running import float_values, named_inputs

if TYPE_CHECKING:
    import torch

    from workbench.checkpoints import Model

#: Modules and functions without parameters, by the last word of their name, and the operator that they become.
_PLAIN = {
    "relu": "relu",
    "relu_": "relu",
    "relu6": "relu6",
    "hardswish": "hard_swish",
    "silu": "silu",
    "sigmoid": "logistic",
    "tanh": "tanh",
}
_NOTHING = frozenset({"dropout", "dropout2d", "identity", "contiguous", "stochasticdepth", "alphadropout"})
#: Arguments of torch's pooling functions after the input, in their order.
_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
#: So many rows of the calibration inputs are compared with the module.
_COMPARED = 4
#: What is covered, for the error that names something else.
COVERED = (
    "conv2d (grouped, depthwise, zero padding), linear, batch norm, relu, relu6, hardswish, silu, gelu, sigmoid, tanh, add, mul, "
    "cat, average, max and adaptive average pooling to 1 x 1, mean over the image, flatten, reshape, dropout, identity"
)


def build_graph(module: torch.nn.Module) -> Graph:
    """Trace a convolutional network and return its float graph, BatchNorm folded.

    Args:
        module: in evaluation mode (a training BatchNorm or dropout would compute something else).

    Raises:
        IntegerError: the module is in training mode, cannot be traced, or holds something that is not covered; it is
            named.
    """
    from torch import fx

    training = next((name for name, each in module.named_modules() if each.training), None)
    if training is not None:
        where = f"{type(module).__name__}{f' ({training})' if training else ''}"
        message = f"{where} is in training mode; call .eval() first, so that BatchNorm is a fixed scale"
        raise IntegerError(message)
    if any(each.is_meta for each in module.parameters()):
        message = f"{type(module).__name__} has no weights yet (they are on torch's meta device): load them first"
        raise IntegerError(message)
    try:
        traced = fx.symbolic_trace(_inside(module))
    except Exception as error:
        message = (
            f"{type(module).__name__} cannot be traced by torch.fx: {error}; its forward must not depend on the data "
            "(give a Graph instead)"
        )
        raise IntegerError(message) from None
    return fold_batch_norms(_Walk(traced).graph())


def _inside(module: torch.nn.Module) -> torch.nn.Module:
    """Put a single layer of torch into a network of one: fx looks into the module that it is given."""
    from torch import nn

    single = type(module).__module__.startswith("torch.nn.") and next(module.children(), None) is None
    return nn.Sequential(OrderedDict([(type(module).__name__.lower(), module)])).eval() if single else module


def check_graph(module: torch.nn.Module, graph: Graph, inputs: Any) -> None:
    """Refuse a graph that gives other numbers than its module: tracing does not see what is done in place, for one.

    Args:
        module: in evaluation mode.
        graph: what ``build_graph`` made of it.
        inputs: of one run; of each the first rows are compared.

    Raises:
        IntegerError: the outputs differ, or the module cannot take these inputs.
    """
    import torch

    name = type(module).__name__
    few = {each: array[:_COMPARED] for each, array in named_inputs(graph, inputs).items()}
    stored = next(module.parameters(), torch.zeros(1))
    try:
        with torch.inference_mode():
            given = [torch.tensor(array).to(stored.device, stored.dtype) for array in few.values()]
            found = module(*given)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        message = (
            f"{name} cannot run on these inputs: {(str(error).strip() or type(error).__name__).splitlines()[0][:200]}"
        )
        raise IntegerError(message) from error
    ours = dict(float_values(graph, few))
    allowed = 1e-3 if stored.dtype in {torch.float32, torch.float64} else 0.05
    for output, theirs in zip(graph.outputs, found if isinstance(found, tuple | list) else (found,), strict=True):
        expected = theirs.float().cpu().numpy()
        reach = float(np.abs(expected).max(initial=0.0))
        off = (
            float(np.abs(ours[output] - expected).max(initial=0.0)) if ours[output].shape == expected.shape else np.inf
        )
        if np.isfinite(reach) and off > allowed * max(reach, 1e-3):
            message = (
                f"the traced graph of {name} differs from the module by {off:.3g} at {output!r} (outputs reach {reach:.3g}): "
                "tracing misses what is computed in place or by an option of a function"
            )
            raise IntegerError(message)


def tiny_resnet_graph(model: Model) -> Graph:
    """Return the float graph of the demo network from its opened checkpoint.

    Raises:
        IntegerError: the checkpoint is not a folder with the network's configuration.
    """
    from workbench.calibration.runnable import resnet_module

    folder = Path(model.source)
    if not (folder / "config.json").is_file():
        message = (
            f"{model.name} is rebuilt from its folder (config.json and model.safetensors), not from {model.source!r}"
        )
        raise IntegerError(message)
    return build_graph(resnet_module().load(folder))


class _Walk:
    """One pass over a traced module; each torch.fx node becomes a node, nothing, or a number."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.nodes: list[Node] = []
        self.inputs: list[str] = []
        self.outputs: tuple[str, ...] = ()
        #: What each torch.fx node became: the name of a value, a number, or a shape whose first axis is the batch (0).
        self.known: dict[Any, Any] = {}
        self.names: set[str] = set()

    def graph(self) -> Graph:
        """Return the float graph."""
        for each in self.traced.graph.nodes:
            if each.op == "placeholder":
                self.inputs.append(each.name)
                self.names.add(each.name)
                self.known[each] = each.name
            elif each.op == "output":
                results = each.args[0] if isinstance(each.args[0], tuple | list) else (each.args[0],)
                self.outputs = tuple(self.value(result, "the output") for result in results)
            elif each.op == "get_attr":
                message = f"the network reads its parameter {each.target!r} directly; covered are {COVERED}"
                raise IntegerError(message)
            else:
                self.known[each] = self.call(each)
        return Graph(tuple(self.nodes), tuple(self.inputs), self.outputs)

    def value(self, argument: Any, what: str) -> str:
        """Return the name of the value that an argument is.

        Raises:
            IntegerError: it is a number or a constant.
        """
        name = self.known.get(argument) if hasattr(argument, "op") else None
        if not isinstance(name, str):
            message = f"{what} works on {argument!r}, which is no value of the network; covered are {COVERED}"
            raise IntegerError(message)
        return name

    def add(
        self, name: str, kind: str, inputs: list[str], constants: dict[str, Any] | None = None, **options: Any
    ) -> str:
        """Append a node and return its value."""
        unique = name
        number = 1
        while unique in self.names:
            number += 1
            unique = f"{name}.{number}"
        self.names.add(unique)
        arrays = {key: _array(tensor) for key, tensor in (constants or {}).items() if tensor is not None}
        self.nodes.append(Node(unique, kind, tuple(inputs), unique, arrays, options))
        return unique

    def call(self, each: torch.fx.Node) -> Any:
        """Return what a call becomes."""
        if each.op == "call_module":
            module = self.modules[str(each.target)]
            what = f"{each.target} ({type(module).__name__})"
            return self.module(str(each.target), module, self.value(each.args[0], what), what)
        word = each.target if isinstance(each.target, str) else getattr(each.target, "__name__", str(each.target))
        return self.function(each, str(word))

    def module(self, name: str, module: Any, x: str, what: str) -> str:
        """Return the value of a module's output."""
        word = type(module).__name__.lower()
        if word == "conv2d":
            if module.padding_mode != "zeros":
                message = f"{what} pads with {module.padding_mode}; integer convolutions pad with zeros"
                raise IntegerError(message)
            return self.add(
                name,
                "conv2d",
                [x],
                {"weight": module.weight, "bias": module.bias},
                stride=tuple(module.stride),
                padding=_conv_padding(module),
                dilation=tuple(module.dilation),
                groups=module.groups,
            )
        if word == "linear":
            return self.add(name, "linear", [x], {"weight": module.weight, "bias": module.bias})
        if word in {"batchnorm2d", "batchnorm1d"}:
            if module.running_mean is None:
                message = f"{what} keeps no running statistics, so it depends on the batch and cannot be folded"
                raise IntegerError(message)
            parts = {"mean": module.running_mean, "variance": module.running_var}
            parts |= {"gamma": module.weight, "beta": module.bias}
            return self.add(name, "batch_norm", [x], parts, epsilon=module.eps)
        if word in {"avgpool2d", "maxpool2d"}:
            return self.pool(name, word, [x], module.__dict__, what)
        if word == "adaptiveavgpool2d":
            return self.adaptive(name, x, module.output_size, what)
        if word == "flatten":
            return self.add(name, "flatten", [x], start=module.start_dim, end=module.end_dim)
        if word == "gelu":
            return self.add(name, "gelu", [x], approximate=module.approximate)
        return self.plain(name, word, x, what)

    def plain(self, name: str, word: str, x: str, what: str) -> str:
        """Return the value of something that needs no settings.

        Raises:
            IntegerError: it is not covered.
        """
        if word in _NOTHING:
            return x
        if word in _PLAIN:
            return self.add(name, _PLAIN[word], [x])
        message = f"{what} is not covered by integer networks yet; covered are {COVERED}"
        raise IntegerError(message)

    def function(self, each: Any, word: str) -> Any:
        """Return what a function or a method of a tensor becomes."""
        what = f"{each.name} ({word})"
        arguments, named = list(each.args), dict(each.kwargs)
        if word in {"add", "iadd", "add_", "mul", "imul", "mul_"} or each.target in {
            python_operator.add,
            python_operator.mul,
        }:
            kind = "add" if "add" in word else "mul"
            if named.get("alpha", 1) != 1:
                message = f"{what} has a factor alpha of {named['alpha']}; integer sums have none"
                raise IntegerError(message)
            return self.add(each.name, kind, [self.value(argument, what) for argument in arguments[:2]])
        if word in {"cat", "concat"}:
            axis = named.get("dim", arguments[1] if len(arguments) > 1 else 0)
            parts = named.get("tensors", arguments[0] if arguments else ())
            return self.add(each.name, "concat", [self.value(part, what) for part in parts], axis=axis)
        if word in {"size", "getattr"}:
            return self.shape(each, arguments, word)
        if word == "getitem":
            whole = self.known.get(arguments[0])
            if isinstance(whole, tuple) and arguments[1] == 0:
                return 0
            message = f"{what} takes a part of a value or of its size; only the batch size, size(0), is covered"
            raise IntegerError(message)
        x = self.value(arguments[0] if arguments else named.get("input"), what)
        if "dropout" in word and named.get("training", arguments[2] if len(arguments) > 2 else True):
            message = f"{what} drops numbers even in evaluation mode: pass training=self.training"
            raise IntegerError(message)
        handler: dict[str, Callable[[], str]] = {
            "flatten": lambda: self.add(
                each.name,
                "flatten",
                [x],
                start=named.get("start_dim", arguments[1] if len(arguments) > 1 else 0),
                end=named.get("end_dim", arguments[2] if len(arguments) > 2 else -1),
            ),
            "view": lambda: self.reshape(each.name, x, arguments[1:], what),
            "reshape": lambda: self.reshape(each.name, x, arguments[1:], what),
            "mean": lambda: self.mean(each.name, x, arguments, named, what),
            "max_pool2d": lambda: self.pool(each.name, "maxpool2d", [x], _arguments(_MAX, arguments, named), what),
            "avg_pool2d": lambda: self.pool(each.name, "avgpool2d", [x], _arguments(_AVERAGE, arguments, named), what),
            "boolean_dispatch": lambda: self.pool(
                each.name, "maxpool2d", [x], _arguments(_MAX, arguments, named), what
            ),
            "adaptive_avg_pool2d": lambda: self.adaptive(
                each.name, x, named.get("output_size", arguments[1] if len(arguments) > 1 else None), what
            ),
            "gelu": lambda: self.add(each.name, "gelu", [x], approximate=named.get("approximate", "none")),
        }
        return handler[word]() if word in handler else self.plain(each.name, word, x, what)

    def shape(self, each: torch.fx.Node, arguments: list[Any], word: str) -> Any:
        """Return a size: the batch, which reshapes keep, or a shape whose first entry is the batch."""
        asked = arguments[1] if len(arguments) > 1 else None
        if asked is None or (word == "getattr" and asked == "shape"):
            return (0,)
        if asked == 0:
            return 0
        message = f"{each.name} asks for a size other than the batch, which a traced integer network cannot know"
        raise IntegerError(message)

    def reshape(self, name: str, x: str, sizes: list[Any], what: str) -> str:
        """Return the value of a reshape; sizes are numbers, -1, or the batch."""
        listed = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
        shape = [self.known.get(size, size) if hasattr(size, "op") else size for size in listed]
        if not all(isinstance(size, int) for size in shape):
            message = f"{what} has a size that is no number: {shape}"
            raise IntegerError(message)
        return self.add(name, "reshape", [x], shape=tuple(shape))

    def mean(self, name: str, x: str, arguments: list[Any], named: dict[str, Any], what: str) -> str:
        """Return the value of a mean over rows and columns."""
        axes = named.get("dim", arguments[1] if len(arguments) > 1 else None)
        axes = tuple(sorted(axis % 4 for axis in axes)) if isinstance(axes, tuple | list) else axes
        if axes != (2, 3):
            message = f"{what} takes a mean over {axes}; covered is the mean over rows and columns, dim=(2, 3)"
            raise IntegerError(message)
        keep = bool(named.get("keepdim", arguments[2] if len(arguments) > 2 else False))
        return self.add(name, "global_average_pool", [x], keep=keep)

    def pool(self, name: str, word: str, inputs: list[str], settings: dict[str, Any], what: str) -> str:
        """Return the value of a pooling window."""
        if settings.get("ceil_mode") or settings.get("divisor_override") or settings.get("return_indices"):
            message = f"{what} uses ceil_mode, divisor_override or return_indices, which integer pooling does not have"
            raise IntegerError(message)
        if settings.get("dilation", 1) not in {1, (1, 1)}:
            message = f"{what} has dilation; integer pooling has none"
            raise IntegerError(message)
        padding = _pair(settings.get("padding", 0))
        if word == "avgpool2d" and padding != (0, 0) and settings.get("count_include_pad", True):
            message = (
                f"{what} counts padding as zeros; integer pooling averages what lies inside (count_include_pad=False)"
            )
            raise IntegerError(message)
        window = _pair(settings["kernel_size"])
        stride = _pair(settings.get("stride") or window)
        kind = "average_pool2d" if word == "avgpool2d" else "max_pool2d"
        rows, columns = padding
        return self.add(name, kind, inputs, window=window, stride=stride, padding=((rows, rows), (columns, columns)))

    def adaptive(self, name: str, x: str, size: Any, what: str) -> str:
        """Return the value of adaptive pooling to one cell."""
        if _pair(size) != (1, 1):
            message = f"{what} pools to {size}; covered is adaptive pooling to 1 x 1"
            raise IntegerError(message)
        return self.add(name, "global_average_pool", [x], keep=True)


def _arguments(words: tuple[str, ...], arguments: list[Any], named: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(words, arguments[1:], strict=False)), **named}


def _conv_padding(module: Any) -> Any:
    if module.padding == "valid":
        return ((0, 0), (0, 0))
    if module.padding == "same":
        reach = [step * (size - 1) for step, size in zip(module.dilation, module.kernel_size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in reach)
    return tuple((both, both) for both in module.padding)


def _pair(value: Any) -> tuple[int, int]:
    if value is None:
        message = "a pooling window needs a size"
        raise IntegerError(message)
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().float().numpy().copy()
