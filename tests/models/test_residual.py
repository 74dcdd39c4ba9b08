"""Residual features by definition, and the score that is made of them."""

import numpy as np
import pytest
import torch

from models import residual
from tests.models.residual_pictures import pictures


def test_features_are_finite_even_on_flat_images() -> None:
    images = torch.cat((torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 255.0))).to(torch.uint8)
    features = residual.features(torch.cat((images, pictures(3, 0, synthetic=False))))
    assert features.shape == (5, residual.NUM_FEATURES)
    assert features.isfinite().all()


def test_features_of_an_image_do_not_depend_on_its_batch() -> None:
    images = pictures(6, 0, synthetic=False)
    whole, alone = residual.features(images), residual.features(images[2:3])
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-4)


def test_spread_is_the_documented_numbers() -> None:
    image = pictures(1, 3, synthetic=False)
    spread = residual.features(image)
    red, green, blue = image[0].double().numpy()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    size = np.abs(luma[:, 1:] - luma[:, :-1]).ravel()
    expected = [np.log(size.mean() + 0.1), np.mean(size > 3 * size.mean()), np.mean(size < size.mean() / 4)]
    assert spread[0, [0, 6, 9]].tolist() == pytest.approx(expected, abs=1e-3)
    assert spread[0, 3].item() == pytest.approx(np.log((luma[:, 1:] - luma[:, :-1]).std() + 0.1), abs=1e-3)
    # counted in quarters of a level
    assert spread[0, 12].exp().item() - 0.1 == pytest.approx(np.quantile(size, 0.95), abs=0.25)


def test_score_is_0_before_it_is_fitted_and_standardized_after() -> None:
    score, images = residual.ResidualScore(), pictures(50, 4, synthetic=False)
    assert not score(images).any()
    features = residual.features(images)
    linear = residual.Linear(*(torch.full((residual.NUM_FEATURES,), value).double() for value in (1.0, 2.0, 0.5)))
    score.fit(linear, features)
    by_hand = 0.5 * ((features - 1) / 2).clamp(-residual.FAR, residual.FAR).sum(1)
    torch.testing.assert_close(score(images), (by_hand - by_hand.mean()) / by_hand.std(), rtol=1e-3, atol=1e-3)
