from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import GridError, RecipeError
from workbench.quantization.recipe import PRESETS, Entry, Recipe, check_integer_activation, weight_grid


def test_later_entries_override_earlier_ones_setting_by_setting():
    recipe = Recipe(
        (
            Entry("*", weight="uniform:bits=4", activation="int16"),
            Entry("*.mlp.*", weight="nf4"),
            Entry("*.mlp.up", activation="int8"),
        )
    )
    found = recipe.for_layer("layers.0.mlp.up")
    assert (found.weight, found.activation, found.granularity, found.scale) == ("nf4", "int8", "channel", "absmax")
    assert recipe.for_layer("head").weight == "uniform:bits=4"
    assert recipe.for_layer("layers.0.mlp.down").activation == "int16"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_found_by_name_and_survive_a_file(name):
    recipe = Recipe.of(name)
    assert Recipe.of(recipe) is recipe
    assert Recipe.of(f" {name.upper()} ") is recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert str(recipe) == name
    assert repr(recipe) == f"Recipe({name!r})"


texts = st.sampled_from([None, "uniform:bits=8", "power:bits=4,exponent=0.5", "power:bits=4,exponent=search", "nf4"])
entries = st.builds(
    Entry,
    pattern=st.sampled_from(["*", "head", "*.mlp.*"]),
    weight=texts,
    granularity=st.sampled_from([None, "tensor", "channel", "group:32"]),
    scale=st.sampled_from([None, "absmax", "mse", "percentile:99.9"]),
    activation=st.sampled_from(
        [None, "int8", "int16", "float", "int8:symmetric", "power:bits=8,exponent=search", "uniform:bits=4@group:32"]
    ),
    ranges=st.sampled_from([None, "minmax", "mse", "percentile:99.99"]),
    table_bits=st.sampled_from([None, 8, 16]),
    method=st.sampled_from([None, "gptq"]),
)


transforms = st.lists(st.sampled_from(["smoothquant:alpha=0.5", "rotation"]), max_size=2)


@given(st.lists(entries, min_size=1, max_size=4), st.sampled_from(["int8", "int16"]), st.floats(1, 64), transforms)
def test_every_recipe_survives_a_file(listed, stream, headroom, changes):
    recipe = Recipe(tuple(listed), stream=stream, headroom=headroom, transforms=tuple(changes))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert all(str(entry) in str(recipe) for entry in listed)


def test_but_adds_an_exception():
    recipe = Recipe.of("w4a8-power").but("head", weight="uniform:bits=8")
    assert recipe.for_layer("head").weight == "uniform:bits=8"
    assert recipe.for_layer("body").weight == "power:bits=4,exponent=search"
    assert recipe.name == ""


def test_patterns_that_match_nothing_are_refused():
    recipe = Recipe.of("w8a8").but("haed", weight="nf4")
    with pytest.raises(RecipeError, match="'haed' matches no layer of this model, did you mean 'head'"):
        recipe.check_patterns(["stem", "head"])
    Recipe.of("w8a8").check_patterns(["stem"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Recipe.of("w8a9"), "did you mean w8a8"),
        (lambda: Entry("*", weight="unform:bits=8"), "no grid named"),
        (lambda: Entry("*", weight="uniform:bits=99"), "cannot be used"),
        (lambda: Entry("*", weight="uniform:bits=4,exponent=search"), "only a power grid"),
        (lambda: Entry("*", granularity="row"), "granularity"),
        (lambda: Entry("*", scale="max"), "scale rule"),
        (lambda: Entry("*", activation="float8"), "is no activation coding"),
        (lambda: Entry("*", activation=8), "an activation coding is a text"),
        (lambda: check_integer_activation("float"), "an activation is coded as"),
        (lambda: check_integer_activation("int8@token"), "an activation is coded as"),
        (lambda: check_integer_activation("power:bits=12"), "at most 8 bits"),
        (lambda: Recipe(transforms="rotation"), "a list of texts"),  # pyright: ignore[reportArgumentType]
        (lambda: Recipe.from_dict({"transforms": "rotation"}), "transforms are a list"),
        (lambda: Recipe(name=3), "name is a text"),  # pyright: ignore[reportArgumentType]
        (lambda: Recipe().removed(0), "keeps at least one entry"),
        (lambda: Recipe().moved(0, 1), "entries 0 to 0"),
        (lambda: Recipe().replaced(-1, Entry()), "not -1"),
        (lambda: Entry("*", ranges="max"), "a range is found by"),
        (lambda: Entry("*", ranges="percentile:20"), "above 50, at most 100"),
        (lambda: Entry("*", ranges="percentile:99.9.9"), "above 50, at most 100"),
        (lambda: Entry("*", table_bits=12), "8 or 16 bits"),
        (lambda: Entry("*", method=3), "named by a text"),
        (lambda: Entry(""), "a pattern such as"),
        (lambda: Recipe(("w8a8",)), "a list of entries"),
        (lambda: Recipe(stream="int4"), "int8 or int16"),
        (lambda: Recipe(headroom=0.5), "between 1 and 64"),
        (lambda: Recipe.of("w8a8").but("*", wieght="nf4"), "no setting 'wieght'"),
        (lambda: Recipe.from_dict({"entries": 3}), "are a list"),
        (lambda: Recipe.from_dict({"entries": [{}]}), "names its layers"),
        (lambda: Recipe.from_dict({"entries": [{"layers": "*", "bits": 4}]}), "no setting 'bits'"),
        (lambda: Recipe.from_dict({"entires": []}), "no setting 'entires'"),
    ],
)
def test_what_a_recipe_cannot_say_is_refused_in_one_sentence(make, words):
    with pytest.raises(RecipeError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_exponent_to_search_is_a_word_in_the_text():
    grid, searching = weight_grid("Power: bits=4, exponent=search, rounding=nearest")
    assert searching
    assert (grid.bits, grid.rounding) == (4, "nearest")
    assert weight_grid("power:bits=4,exponent=0.3")[1] is False
    with pytest.raises(GridError):
        weight_grid("nf4:exponent=search")


def test_the_table_of_entries_can_be_edited():
    recipe = Recipe((Entry("*", weight="nf4"), Entry("head", weight="uniform:bits=8"), Entry("stem", scale="mse")))
    assert [entry.pattern for entry in recipe.moved(2, 0).entries] == ["stem", "*", "head"]
    assert [entry.pattern for entry in recipe.removed(1).entries] == ["*", "stem"]
    assert recipe.replaced(1, Entry("tail")).entries[1].pattern == "tail"
    frame = recipe.to_frame()
    assert list(frame["layers"]) == ["*", "head", "stem"]
    assert frame.loc[2, "scale"] == "mse"
    assert frame.loc[2, "weight"] is None


def test_what_entries_say_is_told_apart_from_defaults():
    recipe = Recipe((Entry("*", weight="nf4"), Entry("lm_head", weight="uniform:bits=8")))
    assert recipe.stated("body") == {"weight": "nf4"}
    assert recipe.for_layer("body").activation == "int8"
    assert recipe.names("lm_head")
    assert not recipe.names("body")
    assert not Recipe((Entry("model.*"),)).names("model.embed_tokens")
    assert Recipe((Entry("*.embed_*"),)).names("model.embed_tokens")
    assert Recipe((Entry("head"),)).stated("body") == {}


def test_spaces_and_case_in_activations_do_not_matter():
    assert Entry(activation="INT8 @ token").activation == "int8@token"
