from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from stanza_sim.model.examples import digits_cnn, tiny_cnn
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile


def profile_of(name: str) -> ModelProfile:
    return extract(f"stanza_sim.model.examples:{name}", name=name, input_shape=(1, 8, 8))


def test_digits_cnn_has_vggs_proportions() -> None:
    profile = profile_of("digits_cnn")
    assert [b.name for b in profile.conv_blocks] == ["features.0", "features.3", "features.7", "features.10"]
    assert [b.name for b in profile.fc_blocks] == ["classifier.1", "classifier.4", "classifier.7"]
    assert profile.nbytes == 7_303_080
    assert round(sum(b.numel for b in profile.fc_blocks) / profile.numel, 2) == 0.87
    conv = sum(b.forward_flops for b in profile.conv_blocks)
    assert round(conv / sum(b.forward_flops for b in profile.blocks), 2) == 0.75
    assert digits_cnn(7)(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_tiny_cnn_is_tiny_and_has_every_kind_of_layer() -> None:
    profile = profile_of("tiny_cnn")
    assert (profile.numel, profile.boundary, len(profile.blocks)) == (4546, 1, 3)
    kinds = {type(m) for m in tiny_cnn().modules()}
    assert {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Linear, nn.Dropout} <= kinds


def test_digits_cnn_learns_digits_in_60_iterations() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    train, test = order[:1500], order[1500:]
    model = digits_cnn()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for step in range(60):
        batch = train[torch.arange(step * 128, (step + 1) * 128) % len(train)]
        optimiser.zero_grad()
        for part in batch.split(32):  # four workers: each normalises by its own samples
            (F.cross_entropy(model(images[part]), labels[part], reduction="sum") / 128).backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        assert (model(images[test]).argmax(1) == labels[test]).float().mean() > 0.95
