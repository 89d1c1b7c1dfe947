"""Recipes as YAML: equal after a file, readable, and what is wrong in one is told with its line."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_recipe import entries, transforms

from workbench.errors import RecipeError
from workbench.quantization.recipe import PRESETS, Entry, Recipe
from workbench.quantization.recipe_file import MAX_BYTES, parse_recipe, recipe_text


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_yaml_file(name, tmp_path):
    path = PRESETS[name].save(tmp_path / "recipe.yaml")
    assert Recipe.load(path) == PRESETS[name]
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


@example([Entry()], (), "\x85")
@given(st.lists(entries, min_size=1, max_size=3), transforms, st.text(max_size=12))
def test_every_recipe_survives_yaml(listed, changes, name):
    recipe = Recipe(tuple(listed), transforms=tuple(changes), name=name)
    assert parse_recipe(recipe_text(recipe)) == recipe


def test_a_file_reads_like_what_it_says():
    recipe = Recipe((Entry("*", weight="power:bits=4,exponent=search"), Entry("*.mlp.*", method="gptq:damp=0.05")))
    text = recipe_text(recipe)
    assert text.startswith("# A recipe of the Quantization Workbench")
    assert "- layers: '*'\n  weight: power:bits=4,exponent=search\n" in text
    assert "- layers: '*.mlp.*'\n  method: gptq:damp=0.05\n" in text


def test_a_hand_written_file_may_leave_most_things_out():
    found = parse_recipe("transforms:\nentries:\n- layers: head\n  weight: nf4\n  scale:\n")
    assert found == Recipe((Entry("head", weight="nf4"),))
    assert parse_recipe("name: plain") == Recipe(name="plain")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "recipe.yaml is empty"),
        ("[1, 2]", "line 1: a recipe is a mapping of settings, not a list"),
        ("entires: []", "line 1: a recipe has no setting 'entires', did you mean entries"),
        ("name: a\nname: b", "line 2: name is given twice"),
        ("name: [a]", "line 1: name is a text, not a list"),
        ("name: a\nentries: []", "line 2: entries is empty; list at least one"),
        ("entries: 3", "line 1: entries is a list, not '3'"),
        ("entries:\n- layers: '*'\n  wieght: nf4", "line 3: an entry of a recipe has no setting 'wieght'.*weight"),
        ("entries:\n- weight: nf4", "line 2: each entry of a recipe names its layers"),
        ("entries:\n- head", "line 2: an entry of a recipe is a mapping"),
        ("entries:\n- layers: head\n  scale: absmax\n  weight: 8", "line 4: weight is a text, not '8'"),
        ("entries:\n- layers: head\n  weight: nf5", "line 3: .*nf5"),
        ("entries:\n- layers: head\n  scale: absmax\n  granularity: row", "line 4: .*granularity 'row'"),
        ("entries:\n- layers: head\n  table_bits: 9", "line 2: a level table holds 8 or 16 bits"),
        ("entries:\n- layers: *.mlp.*\n", "line 2: not valid YAML .* stands in quotes"),
        ("entries:\n- layers: 'head\n", "not valid YAML"),
        ("headroom: true", "headroom is a number"),
        ("headroom: 0.5", "line 1: a recipe's headroom lies between 1 and 64"),
        ("stream: int4", "line 1: a recipe's stream is int8 or int16"),
        ("transforms: [3]", "a transform is a text, not '3'"),
        ("transforms: rotation", "transforms is a list"),
        ("a: !!python/object:os.system {}", "no setting 'a'"),
        ("name: !!python/object:os.system {}", "name is a text"),
        ("name: !!python/name:os.system ''", "not valid YAML"),
        ("[" * 3000, "nested too deeply|not valid YAML"),
        ("\t- x", "line 1: not valid YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, words, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is no text"):
        Recipe.load(tmp_path / "binary")
    (tmp_path / "long").write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="too long for a recipe"):
        Recipe.load(tmp_path / "long")
    with pytest.raises(RecipeError, match="cannot be written"):
        Recipe.of("w8a8").save(tmp_path / "no" / "folder" / "r.yaml")
