import pytest

from workbench.errors import QuantizationError
from workbench.quantization import PerAxis, PerGroup, PerTensor, parse_granularity


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerGroup(1), PerGroup(128)])
def test_text_form_round_trips(granularity):
    assert parse_granularity(str(granularity)) == granularity
    assert parse_granularity(granularity) is granularity
    assert parse_granularity(f"  {str(granularity).upper()} ") == granularity
    assert len({granularity, parse_granularity(str(granularity))}) == 1


@pytest.mark.parametrize(
    ("text", "shape", "scales", "size"),
    [
        ("tensor", (6, 10), (1, 1), 10),
        ("channel", (6, 10), (6, 1), 10),
        ("group:4", (6, 10), (6, 3), 4),
        ("group:5", (6, 10), (6, 2), 5),
        ("group:128", (6, 10), (6, 1), 10),
        ("group:1", (1, 3), (1, 3), 1),
    ],
)
def test_scale_shape_and_group_size(text, shape, scales, size):
    granularity = parse_granularity(text)
    assert granularity.scale_shape(*shape) == scales
    assert granularity.group_size(shape[1]) == size


@pytest.mark.parametrize(
    "text",
    ["", "row", "group", "group:", "group:0", "group:-4", "group:4.5", "group:x", "channel:1", None, 4, "group:²"],
)
def test_other_words_are_refused(text):
    with pytest.raises(QuantizationError, match="granularity"):
        parse_granularity(text)


def test_objects_are_checked():
    with pytest.raises(QuantizationError, match="axis 1"):
        PerAxis(1)
    with pytest.raises(QuantizationError, match="at least one"):
        PerGroup(0)
