"""``OPERATORS``: every operator that a graph can hold, by name.

A new operator is a subclass of ``Operator`` (see ``workbench.integer.operator``), listed here or handed to ``register``.
"""

from __future__ import annotations

import importlib

from workbench.errors import IntegerError
from workbench.integer.activation_operators import Gelu, HardSwish, LeakyRelu, Logistic, Silu, Tanh
from workbench.integer.attention_operators import (
    AttentionContext,
    Cache,
    CausalMask,
    MaskedSoftmax,
    PaddingMask,
    Positions,
)
from workbench.integer.elementwise_operators import Add, Mul
from workbench.integer.norm_operators import LayerNorm, RmsNorm, Rotary
from workbench.integer.operator import Operator
from workbench.integer.pooling_operators import AveragePool2d, GlobalAveragePool, MaxPool2d
from workbench.integer.product_operators import Conv2d, Linear, Matmul
from workbench.integer.recoding import Relu, Relu6, Requantize
from workbench.integer.shape_operators import Concat, Flatten, Repeat, Reshape, Slice, Transpose
from workbench.integer.transformer_operators import Embedding, MeanPool, SoftCap

#: Operators by name.
OPERATORS: dict[str, Operator] = {}


def register(operator: Operator) -> Operator:
    """Add an operator to ``OPERATORS``.

    Raises:
        IntegerError: another operator has this name.
    """
    known = OPERATORS.get(operator.name)
    if known is not None and type(known) is not type(operator):
        message = f"there is an operator {operator.name!r} already; give yours another name"
        raise IntegerError(message)
    OPERATORS[operator.name] = operator
    return operator


def operator_of(name: str) -> Operator:
    """Return the operator of this name.

    Raises:
        IntegerError: there is none.
    """
    if name not in OPERATORS and name.startswith("tflite:"):  # of a saved or pickled model that was read from a file
        importlib.import_module("workbench.integer.tflite_model")
    if name not in OPERATORS:
        message = f"no operator is called {name!r}; a graph can hold {', '.join(sorted(OPERATORS))}"
        raise IntegerError(message)
    return OPERATORS[name]


for _operator in (
    Linear(),
    Conv2d(),
    Matmul(),
    Requantize(),
    Relu(),
    Relu6(),
    Reshape(),
    Flatten(),
    Transpose(),
    Slice(),
    Repeat(),
    Concat(),
    Add(),
    Mul(),
    AveragePool2d(),
    MaxPool2d(),
    GlobalAveragePool(),
    Logistic(),
    Tanh(),
    Gelu(),
    Silu(),
    HardSwish(),
    LeakyRelu(),
    Embedding(),
    Positions(),
    CausalMask(),
    PaddingMask(),
    Cache(),
    Rotary(),
    RmsNorm(),
    LayerNorm(),
    MaskedSoftmax(),
    AttentionContext(),
    SoftCap(),
    MeanPool(),
):
    register(_operator)
