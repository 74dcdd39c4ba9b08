import torch
import torch.nn.functional as F

from models.layout import WIDTH, layout


def test_a_scaled_copy_is_near_and_another_picture_is_far() -> None:
    rng = torch.Generator().manual_seed(0)
    rough = torch.randint(0, 256, (20, 3, 5, 5), generator=rng).float()
    large, small = (F.interpolate(rough, (side, side), mode="bilinear").to(torch.uint8) for side in (64, 40))
    one, other = F.normalize(layout(large)), F.normalize(layout(small))
    distance = 1 - one @ other.T
    assert distance.shape == (20, 20) and layout(large).shape == (20, WIDTH)
    assert distance.diagonal().max() < 0.02
    assert distance[~torch.eye(20, dtype=torch.bool)].min() > 0.4


def test_it_does_not_depend_on_the_batch() -> None:
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert layout(images)[2:3].equal(layout(images[2:3]))
