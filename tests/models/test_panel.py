"""The panel of witnesses on synthetic features whose truth is known."""

import hashlib

import pytest
import torch
from torch import Tensor

from models import panel
from models.estimates import excess
from models.panel import FOLDS, Examples, Panel, fold_of

WIDTHS = {"strong": 6, "weak": 4, "noise": 5}
SHIFT = {"strong": 2.0, "weak": 0.7, "noise": 0.0}  # of the first feature of each witness, for synthetic images
LABELED, POOL = 200, 600


def auroc(higher: Tensor, lower: Tensor) -> float:
    return 0.5 + excess(higher, lower)


def folds(count: int, prefix: str = "") -> Tensor:
    return fold_of([hashlib.sha256(f"{prefix}{i}".encode()).hexdigest() for i in range(count)])


def features(synthetic_M: Tensor, seed: int, prefix: str = "") -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for name, width in WIDTHS.items():
        part = torch.randn(len(synthetic_M), width, generator=rng)
        part[:, 0] += SHIFT[name] * synthetic_M
        parts.append(part)
    return torch.cat((*parts, folds(len(synthetic_M), prefix)[:, None]), 1)


def world(num_known: int = 0) -> tuple[Tensor, Examples, Tensor]:
    """Features of labeled, pool and known synthetic images, what they teach, and the truth of the pool."""
    synthetic = torch.arange(POOL) % 3 == 0
    parts = [
        features(torch.zeros(LABELED), 0, "labeled"),
        features(synthetic.float(), 1, "pool"),
        features(torch.ones(num_known), 2, "known"),
    ]
    kind = torch.arange(3).repeat_interleave(torch.tensor([LABELED, POOL, num_known]))
    return torch.cat(parts), Examples(kind == 1, kind == 0, (kind == 0).double(), (kind == 2).double()), synthetic


def fitted(packed: Tensor, examples: Examples) -> Panel:
    found = Panel(WIDTHS)
    found.fit(packed, examples)
    return found


def test_a_panel_finds_the_planted_direction_without_a_synthetic_label() -> None:
    packed, examples, synthetic = world()
    scores = fitted(packed, examples).score(packed)[examples.pool]
    assert scores.dtype == torch.float32
    assert auroc(scores[synthetic], scores[~synthetic]) > 0.85
    blind = packed.clone()
    blind[:, 0] = packed[torch.randperm(len(packed), generator=torch.Generator().manual_seed(5)), 0]
    scores = fitted(blind, examples).score(blind)[examples.pool]
    assert auroc(scores[synthetic], scores[~synthetic]) < 0.75


def test_the_sum_has_mean_0_and_deviation_1_over_the_pool() -> None:
    packed, examples, _ = world()
    found = fitted(packed, examples)
    alone, scores = found.alone(packed), found.score(packed)
    for k in range(FOLDS):
        mine, of_pool = packed[:, -1] == k, alone[examples.pool] @ found.votes[k]
        expected = (alone[mine] @ found.votes[k] - of_pool.mean()) / of_pool.std(correction=0)
        torch.testing.assert_close(scores[mine], expected.float())
    assert scores[examples.pool].mean().item() == pytest.approx(0, abs=0.02)
    assert scores[examples.pool].std().item() == pytest.approx(1, abs=0.02)


def test_votes_follow_how_well_a_witness_separates_images_of_other_folds() -> None:
    packed, examples, _ = world()
    found = fitted(packed, examples)
    alone = found.alone(packed)
    for w in range(len(WIDTHS)):
        for k in range(FOLDS):
            pool, labeled = (alone[part & (packed[:, -1] != k), w] for part in (examples.pool, examples.labeled))
            above_chance = max(panel.LEAST_SEPARATION, excess(pool, labeled))
            assert found.votes[k, w].item() == pytest.approx(above_chance**panel.POWER)
    strong, weak = (auroc(alone[examples.pool, w], alone[examples.labeled, w]) for w in (0, 1))
    assert strong > weak > 0.5


def test_the_logit_is_0_at_the_threshold() -> None:
    packed, examples, _ = world()
    found = fitted(packed, examples)
    found.threshold.fill_(0.5)
    assert torch.equal(found(packed), found.score(packed) - 0.5)


def test_no_image_has_a_part_in_the_model_that_scores_it() -> None:
    packed, examples, _ = world()
    before = fitted(packed, examples)
    changed = packed.clone()
    mine = packed[:, -1] == 2
    changed[mine, :-1] = 50 * torch.randn(
        int(mine.sum()), packed.shape[1] - 1, generator=torch.Generator().manual_seed(3)
    )
    after = fitted(changed, examples)
    for name in WIDTHS:
        for part in ("mean", "std", "weight"):
            one, other = (each.get_buffer(f"{name}_{part}") for each in (before, after))
            torch.testing.assert_close(one[2], other[2], rtol=0, atol=0)
            assert not torch.equal(one[3], other[3])


def test_labeled_images_score_like_unseen_real_ones() -> None:
    """Models that had seen the labeled images would tell them from other real images: here 60 features overfit 30."""
    rng = torch.Generator().manual_seed(0)
    packed = torch.randn(230, 61, generator=rng)
    packed[:, -1] = folds(230).float()
    kind = torch.arange(230) < 30
    examples = Examples(~kind, kind, kind.double(), torch.zeros(230, dtype=torch.float64))
    found = Panel({"all": 60})
    found.fit(packed, examples)
    unseen = found.score(packed)
    assert auroc(unseen[~kind], unseen[kind]) == pytest.approx(0.5, abs=0.15)
    seen = packed.clone()
    seen[:, -1] = (seen[:, -1] + 1) % FOLDS  # as if each image were of another fold: models that have seen it
    scores = found.score(seen)
    assert auroc(scores[~kind], scores[kind]) > 0.8


def test_the_score_of_an_image_does_not_depend_on_the_images_beside_it() -> None:
    packed, examples, _ = world()
    found = fitted(packed, examples)
    torch.testing.assert_close(found.score(packed[17:18]), found.score(packed)[17:18])
    assert found.score(packed[:0]).shape == (0,)


def test_a_feature_that_is_unknown_says_nothing() -> None:
    packed, examples, synthetic = world()
    packed[::7, : WIDTHS["strong"]] = torch.nan  # one witness knows nothing of every seventh image
    found = fitted(packed, examples)
    alone = found.alone(packed)
    assert alone.isfinite().all()
    for fold in range(FOLDS):
        silent = alone[::7, 0][packed[::7, -1] == fold]
        assert len(silent) > 1 and (silent == silent[0]).all()
    scores = found.score(packed)[examples.pool]
    assert auroc(scores[synthetic], scores[~synthetic]) > 0.8
    packed[:, : WIDTHS["strong"]] = torch.nan
    assert fitted(packed, examples).score(packed).isfinite().all()


def test_known_synthetic_images_help() -> None:
    aurocs = []
    for num_known in (0, 50):
        packed, examples, synthetic = world(num_known)
        # Among so many features the labeled images alone do not find the one that matters.
        rng = torch.Generator().manual_seed(8)
        wide = torch.cat((packed[:, :-1] * 0.6, 2 * torch.randn(len(packed), 120, generator=rng), packed[:, -1:]), 1)
        found = Panel({"all": wide.shape[1] - 1})
        found.fit(wide, examples)
        scores = found.score(wide)[examples.pool]
        aurocs.append(auroc(scores[synthetic], scores[~synthetic]))
    assert aurocs[1] > aurocs[0] + 0.02


def test_known_images_that_are_like_none_of_the_pool_hardly_mislead() -> None:
    """Such as those of one generator beside a pool of others: here they differ where no image of the pool does."""
    packed, examples, synthetic = world(50)
    known = examples.synthetic > 0
    packed[known, 0] -= SHIFT["strong"]
    packed[known, 10] += 3.0  # of the witness that is noise
    found = fitted(packed, examples)
    scores = found.score(packed)[examples.pool]
    plain, without, _ = world()
    expected = fitted(plain, without).score(plain)[without.pool]
    assert auroc(scores[synthetic], scores[~synthetic]) > auroc(expected[synthetic], expected[~synthetic]) - 0.02
    by_known = found.alone(packed)[:, len(WIDTHS) + 2]
    assert auroc(by_known[known], by_known[examples.labeled]) > 0.9  # it does tell the known ones
    assert (found.votes[:, len(WIDTHS) + 2] < found.votes[:, 0] / 10).all()


def test_the_fold_of_the_only_known_image_has_no_score_by_it() -> None:
    """Its labeled images would have been seen, and would seem to lie below the pool."""
    packed, examples, _ = world(1)
    by_known = fitted(packed, examples).alone(packed)[:, len(WIDTHS) :]
    mine = packed[:, -1] == packed[examples.synthetic > 0, -1]
    assert (by_known[mine] == 0).all() and (by_known[~mine] != 0).all()


def test_without_known_images_their_scores_are_silent() -> None:
    packed, examples, _ = world()
    assert (fitted(packed, examples).alone(packed)[:, len(WIDTHS) :] == 0).all()


def test_an_image_of_the_pool_that_is_known_is_evidence_of_what_it_is() -> None:
    packed, examples, synthetic = world()
    pool = examples.pool.nonzero().squeeze(1)
    examples.synthetic[pool[synthetic][:60]] = 1.0
    examples.real[pool[~synthetic][:60]] = 1.0
    scores = fitted(packed, examples).score(packed)
    _, plain, _ = world()
    without = fitted(packed, plain).score(packed)
    others = [pool[synthetic][60:], pool[~synthetic][60:]]
    assert auroc(*(scores[each] for each in others)) > auroc(*(without[each] for each in others))


@pytest.mark.parametrize("width", [20, 150])
def test_a_witness_is_the_same_whether_it_is_solved_by_features_or_by_images(width: int) -> None:
    """At the minimum of weighted squares plus penalty, by whichever of both systems it was found, the gradient is 0."""
    rng = torch.Generator().manual_seed(1)
    packed = torch.cat((torch.randn(90, width, generator=rng), folds(90)[:, None]), 1)
    kind = torch.arange(90) < 30
    found = Panel({"all": width})
    found.fit(packed, Examples(~kind, kind, kind.double(), torch.zeros(90, dtype=torch.float64)))
    for k in range(FOLDS):
        weight_M = torch.where(kind, 1.0, 0.5).double() / 60 * (packed[:, -1] != k)
        features = packed[:, :-1].double()
        mean, std, weight = (found.get_buffer(f"all_{part}")[k] for part in ("mean", "std", "weight"))
        torch.testing.assert_close(mean, weight_M @ features / weight_M.sum())
        design, sign = (features - mean) / std, torch.where(kind, -1.0, 1.0).double()
        gradient = design.T @ (weight_M * (design @ weight - sign)) + panel.PENALTY * weight
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_a_wide_witness_has_a_penalty_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, examples, _ = world()
    norms = []
    for wide_from in (7, 6):
        monkeypatch.setattr(panel, "WIDE", wide_from)
        norms.append(fitted(packed, examples).get_buffer("strong_weight").norm())
    assert norms[1] < norms[0] / 5


def test_a_panel_comes_back_from_its_state_with_the_same_scores() -> None:
    packed, examples, _ = world(10)
    found = fitted(packed, examples)
    found.threshold.fill_(0.25)
    other = Panel(WIDTHS)
    assert not torch.equal(other(packed), found(packed))
    other.load_state_dict(found.state_dict())
    assert torch.equal(other(packed), found(packed))
    assert not list(found.parameters())


def test_images_of_one_fold_are_fitted_all_the_same() -> None:
    packed, examples, synthetic = world()
    packed[:LABELED, -1] = 1.0  # as two or three labeled images may be
    scores = fitted(packed, examples).score(packed)[examples.pool]
    assert auroc(scores[synthetic], scores[~synthetic]) > 0.85


def test_the_fold_of_a_file_is_a_function_of_its_digest() -> None:
    assert fold_of(["00000000" + "f" * 56, "00000007" + "0" * 56, "ffffffff" + "0" * 56]).tolist() == [
        0,
        2,
        0xFFFFFFFF % 5,
    ]
    counts = torch.bincount(folds(5_000), minlength=FOLDS)
    assert counts.min() > 900 and len(counts) == FOLDS


def test_auroc_counts_ties_as_half() -> None:
    rng = torch.Generator().manual_seed(0)
    higher, lower = (torch.randint(0, 6, (count,), generator=rng).float() for count in (30, 21))
    pairs = higher[:, None] - lower
    expected = ((pairs > 0).double() + (pairs == 0) / 2).mean()
    assert auroc(higher, lower) == pytest.approx(expected.item())
