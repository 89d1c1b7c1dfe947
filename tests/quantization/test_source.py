import ml_dtypes
import numpy as np
import pytest

from workbench.checkpoints.layer import Layer, Weights
from workbench.errors import QuantizationError, WorkbenchError
from workbench.quantization import as_matrix
from workbench.quantization.source import ArrayWeights

torch = pytest.importorskip("torch")


class Rows(Weights):
    """Weights that count how many rows were read at most in one piece."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

    def rows(self, start, stop):
        self.most = max(self.most, stop - start)
        return self.array[start:stop]


def layer_of(weights, name="model.layers.0.mlp.down_proj", shape=None):
    return Layer(name, weights, shape or weights.shape, str(weights.dtype), "linear", "down_proj", "key")


def test_layer_keeps_its_rows_shape_and_name():
    weights = Rows(np.ones((4, 18), dtype=np.float16))
    matrix = as_matrix(layer_of(weights, shape=(4, 2, 3, 3)))
    assert matrix.weights is weights
    assert matrix.shape == (4, 2, 3, 3)
    assert matrix.name == "model.layers.0.mlp.down_proj"
    assert weights.most == 0


@pytest.mark.parametrize("shape", [(5,), (1,), (3, 4), (2, 3, 4), (6, 2, 3, 3)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_arrays_of_every_shape_and_dtype_are_rows_of_the_same_numbers(shape, dtype):
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    matrix = as_matrix(array)
    rows = 1 if len(shape) == 1 else shape[0]
    assert matrix.weights.shape == (rows, array.size // rows)
    assert matrix.shape == shape
    assert matrix.weights.dtype == dtype
    np.testing.assert_array_equal(np.asarray(matrix.weights).ravel(), array.ravel())


def test_numpy_memory_is_shared_and_slices_of_views_are_contiguous():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert np.shares_memory(as_matrix(array).weights.rows(1, 3), array)
    turned = as_matrix(array.T).weights
    assert turned.rows(0, 2).flags.c_contiguous
    np.testing.assert_array_equal(turned.rows(2, 4), array.T[2:4])
    swapped = array.astype(">f4")
    np.testing.assert_array_equal(np.asarray(as_matrix(swapped).weights), array)
    assert as_matrix(swapped).weights.rows(0, 1).dtype == np.dtype("=f4")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float16, np.float16),
        (torch.float32, np.float32),
        (torch.float64, np.float64),
        (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
        (torch.float8_e5m2, ml_dtypes.float8_e5m2),
    ],
)
def test_torch_tensors_are_seen_without_a_copy(kind, dtype):
    tensor = torch.randn(3, 2, 5).to(kind)
    matrix = as_matrix(tensor)
    assert matrix.weights.dtype == dtype
    assert matrix.shape == (3, 2, 5)
    rows = matrix.weights.rows(0, 3)
    assert rows.__array_interface__["data"][0] == tensor.data_ptr()
    np.testing.assert_array_equal(rows.astype(np.float64).ravel(), tensor.double().numpy().ravel())


def test_parameters_and_turned_tensors_are_weights_too():
    parameter = torch.nn.Parameter(torch.randn(4, 3))
    np.testing.assert_array_equal(np.asarray(as_matrix(parameter).weights), parameter.detach().numpy())
    turned = torch.randn(3, 4).to(torch.bfloat16).t()
    np.testing.assert_array_equal(np.asarray(as_matrix(turned).weights).astype(np.float32), turned.float().numpy())


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (np.zeros((0, 4), np.float32), "empty"),
        (np.zeros((4, 0), np.float32), "empty"),
        (np.zeros(0, np.float32), "empty"),
        (torch.zeros(2, 0), "empty"),
        (np.arange(4), "not int64"),
        (np.ones((2, 2), complex), "not complex128"),
        (np.ones((2, 2), np.longdouble), "floating-point"),
        (np.array(["a"]), "floating-point"),
        ([[1.0], [2.0, 3.0]], "not a list"),
        (None, "not NoneType"),
        ("layer", "floating-point"),
        (torch.zeros(2, 2, dtype=torch.int8), "not torch.int8"),
        (torch.zeros(2, 2, device="meta"), "meta"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.nn.Linear(2, 2), "not"),
    ],
)
def test_what_is_no_weight_gets_one_sentence(weight, says):
    with pytest.raises(QuantizationError, match=says) as caught:
        as_matrix(weight)
    assert isinstance(caught.value, WorkbenchError)
    assert "\n" not in str(caught.value)


def test_empty_layer_is_named():
    with pytest.raises(QuantizationError, match="down_proj is empty"):
        as_matrix(layer_of(Rows(np.ones((0, 3), dtype=np.float32))))


def test_lists_of_numbers_are_arrays():
    assert as_matrix([[1.0, 2.0]]).weights.shape == (1, 2)
    assert ArrayWeights(np.ones((), dtype=np.float32)).shape == (1, 1)
