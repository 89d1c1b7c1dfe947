"""Run one model in another package: TensorFlow Lite (LiteRT), TensorFlow Lite Micro, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from workbench.errors import IntegerError

#: ONNX Runtime refuses models of newer operator sets than it was built for.
ONNX_OPSET = 21

_RESOLVERS = {
    "reference": "BUILTIN_REF",
    "default": "AUTO",
    "optimized": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
}


def run_litert(
    model: bytes,
    inputs: Sequence[np.ndarray],
    resolver: Literal["reference", "default", "optimized"] = "reference",
) -> list[np.ndarray]:
    """Return a TensorFlow Lite model's outputs as LiteRT (``ai-edge-litert``) computes them, in one thread.

    Args:
        model: the file's bytes.
        inputs: one array per input, in the model's order and of its types and shapes.
        resolver: ``reference`` kernels (plain loops; what ``litert-reference`` follows), ``default`` (XNNPACK, then
            optimized kernels), or ``optimized`` (the processor's own kernels without XNNPACK).

    Raises:
        IntegerError: an unknown resolver, or inputs that are not the model's.
        RuntimeError, ValueError: LiteRT's own, where it cannot run the model.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    if resolver not in _RESOLVERS:
        message = f"LiteRT's kernels are 'reference', 'default' or 'optimized', not {resolver!r}"
        raise IntegerError(message)
    interpreter = Interpreter(
        model_content=model,
        num_threads=1,
        experimental_op_resolver_type=getattr(OpResolverType, _RESOLVERS[resolver]),
    )
    interpreter.allocate_tensors()
    wanted = interpreter.get_input_details()
    _check_inputs(inputs, [(each["dtype"], tuple(each["shape"])) for each in wanted])
    for each, values in zip(wanted, inputs, strict=True):
        interpreter.set_tensor(each["index"], values)
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(each["index"])) for each in interpreter.get_output_details()]


def run_tflm(model: bytes, inputs: Sequence[np.ndarray], arena_size: int | None = None) -> list[np.ndarray]:
    """Return a TensorFlow Lite model's outputs as TensorFlow Lite Micro (``tflite-micro``) computes them.

    Args:
        model: the file's bytes.
        inputs: one array per input, in the model's order and of its types and shapes.
        arena_size: bytes of working memory; by default a megabyte and twenty times the model and its inputs.

    Raises:
        IntegerError: inputs that are not the model's.
        RuntimeError: TensorFlow Lite Micro's own, where it cannot run the model.
    """
    from tflite_micro import runtime

    arena = arena_size or (1 << 20) + 20 * (len(model) + sum(values.nbytes for values in inputs))
    interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena)
    count_inputs, count_outputs = _ends(model)
    wanted = [interpreter.get_input_details(index) for index in range(count_inputs)]
    _check_inputs(inputs, [(each["dtype"], tuple(each["shape"])) for each in wanted])
    for index, values in enumerate(inputs):
        interpreter.set_input(np.ascontiguousarray(values), index)
    interpreter.invoke()
    return [np.array(interpreter.get_output(index)) for index in range(count_outputs)]


def _ends(model: bytes) -> tuple[int, int]:
    import tflite

    graph: Any = tflite.Model.GetRootAs(model, 0).Subgraphs(0)
    return graph.InputsLength(), graph.OutputsLength()


def _check_inputs(inputs: Sequence[np.ndarray], wanted: Sequence[tuple[Any, tuple[int, ...]]]) -> None:
    given = [(np.dtype(values.dtype), values.shape) for values in inputs]
    expected = [(np.dtype(kind), tuple(int(length) for length in shape)) for kind, shape in wanted]
    if given != expected:
        message = f"the model takes {_listed(expected)}, not {_listed(given)}"
        raise IntegerError(message)


def _listed(ends: Sequence[tuple[np.dtype, tuple[int, ...]]]) -> str:
    return ", ".join(f"{kind} {shape}" for kind, shape in ends)


def onnx_model(
    operator: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, Any],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    order: Sequence[str] | None = None,
    domain: str = "",
    **attributes: Any,
) -> Any:
    """Return an ONNX model of one operator.

    Args:
        operator: e.g. ``"QLinearMatMul"``.
        inputs: example arrays by name: their types and shapes are the model's.
        outputs: element types by name.
        constants: initializers by name.
        order: names in the order of the operator's inputs (``""`` leaves one out); by default inputs, then constants.
        domain: ``"com.microsoft"`` for ONNX Runtime's own operators.
        attributes: the operator's attributes.
    """
    from onnx import helper, numpy_helper

    def described(name: str, dtype: Any, shape: tuple[int, ...] | None) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    constants = constants or {}
    names = list(order) if order is not None else [*inputs, *constants]
    node = helper.make_node(operator, names, list(outputs), domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        operator,
        [described(name, values.dtype, values.shape) for name, values in inputs.items()],
        [described(name, dtype, None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(np.asarray(values, order="C"), name) for name, values in constants.items()],
    )
    sets = [helper.make_opsetid("", ONNX_OPSET)]
    if domain:
        sets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=sets, ir_version=10)


def run_onnx(model: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return an ONNX model's outputs as ONNX Runtime computes them on the CPU, in one thread, nothing fused.

    Args:
        model: an ``onnx.ModelProto``, or its bytes.
        inputs: arrays by name.

    Raises:
        Exception: ONNX Runtime's own, where it cannot run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Fusions change which kernel runs, and with it the last bit.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [np.asarray(values) for values in session.run(None, dict(inputs))]
