import pytest
import torch

from models.baselines import OpenSet
from tests.models import toy


@pytest.mark.parametrize("rule", ["flexmatch", "freematch", "softmatch"])
def test_every_rule_trains_fixmatch(rule: str) -> None:
    model = toy.build(method="fixmatch", rule=rule, confidence_threshold=0.8)
    assert all(figures["self_real"].isfinite() for figures in toy.train(model, range(30)))
    assert toy.accuracy(model) > 0.9


@pytest.mark.parametrize("method", ["fixmatch", "openmatch", "iomatch", "supervised"])
def test_methods_learn_simple_pictures(method: str) -> None:
    model = toy.build(method=method, confidence_threshold=0.8)
    toy.train(model, range(60))
    assert toy.accuracy(model) == 1.0


@pytest.mark.parametrize("method", ["openmatch", "iomatch"])
def test_open_set_heads_train_with_the_classifier_and_their_biases_do_not_decay(method: str) -> None:
    model = toy.build(method=method)
    assert isinstance(model, OpenSet)
    before = [value.clone() for value in model.heads.parameters()]
    decayed, others = ({id(p) for p in group["params"]} for group in model.classifier.optimizer.param_groups)
    assert all(id(value) in (decayed if value.ndim > 1 else others) for value in model.heads.parameters())
    toy.train(model, range(2))
    assert not any(torch.equal(ours, old) for ours, old in zip(model.heads.parameters(), before, strict=True))


@pytest.mark.parametrize("method", ["fixmatch", "openmatch", "iomatch", "supervised"])
def test_they_know_nothing_of_synthetic_images(method: str) -> None:
    model = toy.build(method=method, warmup=0.1)
    assert not model.has_detector
    assert model.bootstrap_step is None
    assert model.routing_start == 30  # when the warm-up is over
    assert not {"dummy_share", "detector_sup", "sup_dummy"} & set(toy.train(model, range(1))[0])
