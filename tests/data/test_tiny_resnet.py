from __future__ import annotations

import json

import pytest
import tiny_resnet
import torch
import train_tiny_resnet

from workbench.resources import demo_path


@pytest.fixture(scope="module")
def figures():
    return json.loads((demo_path("tiny-resnet") / "training.json").read_text())["figures"]


def test_it_scores_what_its_card_says(figures):
    model = tiny_resnet.load(demo_path("tiny-resnet"))
    _, _, images, labels = train_tiny_resnet.digits()
    accuracy = train_tiny_resnet.accuracy(model, images, labels)
    assert accuracy == pytest.approx(
        figures["held_out_accuracy"], abs=1.5 / len(labels)
    )  # one image may fall otherwise
    assert accuracy >= 0.98
    assert f"{100 * figures['held_out_accuracy']:.2f} %" in (demo_path("tiny-resnet") / "README.md").read_text()


def test_no_held_out_image_is_trained_on():
    train_x, train_y, held_x, held_y = train_tiny_resnet.digits()
    assert len(train_x) + len(held_x) == 1797
    assert len(train_y) == len(train_x)
    assert sorted(set(held_y.tolist())) == list(range(10))
    trained = {image.numpy().tobytes() for image in train_x}
    assert not any(image.numpy().tobytes() in trained for image in held_x)


def test_it_has_depthwise_convolutions_and_batchnorm():
    modules = list(tiny_resnet.load(demo_path("tiny-resnet")).modules())
    convolutions = [m for m in modules if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.groups == m.in_channels > 1 for m in convolutions) == 2
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in modules) == len(convolutions)


def test_augmentation_keeps_shape_and_is_seeded():
    images = train_tiny_resnet.digits()[0][:5]
    once, again = (train_tiny_resnet.augment(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, images)
    assert once.min() >= 0
    assert once.max() <= images.max()
