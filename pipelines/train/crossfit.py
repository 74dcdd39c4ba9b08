"""Logits of the labeled images by classifiers that have not seen them, and how far the images are from one another.

On the features of a frozen backbone a training takes seconds. So the labeled set is cut into folds, and for each fold
the same method is trained again without its labels: every labeled image is judged as an image of the pool will be. Its
pixels stay in the pool meanwhile, because the pool's images, too, take part in self-training.

Self-training on fixed features may do harm: a classifier that is sure of its errors learns them. So the labeled images
are judged a second time, by classifiers of the labels alone, and the better of the two is kept (`self_training` of the
recipe). On enlarged CIFAR-10 images self-training loses 1 to 4 points, on photographs it gains 1 (docs/benchmarks.md).

A network that is trained end to end takes too long for that. It keeps a share of the labeled images from its classifier
instead (`calibration_share` of the recipe), and these alone are judged, by the network itself.
"""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from models import calibration, methods, ranks
from models.batch import Batch
from models.classifier import TwoHeaded
from models.methods import Method
from models.ranks import Rng
from models.routed import Prior
from pipelines.compute import devices
from pipelines.images.views import Views
from pipelines.pool import labeled
from pipelines.pool.labeled import Labeled
from pipelines.progress import OnTick, Tick, ignore
from pipelines.run import labels
from pipelines.run.calibration import Evidence
from pipelines.train import networks
from pipelines.train.batches import Order, generator
from pipelines.train.config import TrainConfig
from pipelines.train.data import Batches, Data
from pipelines.train.photographs import Prepared

FOLDS = 5
FOLDS_OF_LABELS = 10  # without the pool a training takes a fifth of the time
JUDGED = 500  # images judged at once


def evidence(
    config: TrainConfig,
    data: Data,
    batches: Batches,
    method: Method,
    prepared: Prepared | None,
    on_tick: OnTick,
) -> Evidence | None:
    """Judge labeled images by classifiers that have not seen them; None without classes or of too few images."""
    if not data.classes or (config.network.frozen and config.needs_truth):  # an oracle routes no labeled image
        return None
    if prepared is not None and prepared.images is not None:
        found, of_labels = better(config, data, prepared.images.views, prepared.prior, on_tick)
        if of_labels is not None:
            method.classifier.average.load_state_dict(of_labels.state_dict())
    else:
        with torch.no_grad():
            parts = [method.classifier.average.embed(part) for part in torch.split(batches.labeled_images, JUDGED)]
            embeddings = torch.cat(parts)
            logits = method.classifier.average.real(embeddings[batches.unlearned]).float().cpu()
        found = held_out(data, batches.unlearned, logits, embeddings.float().cpu())
    return found if len(found.labels) >= calibration.FEWEST else None


def measure(config: TrainConfig, data: Data, found: Evidence | None) -> labels.Labels | None:
    """Say how often labels are right, and which files of the labeled set likely have a wrong one."""
    if found is None:
        return None
    named = {hashlib.sha256(path.read_bytes()).hexdigest(): str(path) for path, _ in labeled.files(config.labeled)}
    return labels.measure(found, data.classes, suspects=labels.suspects_of(found, data.classes, named))


def better(
    config: TrainConfig, data: Data, pool: Views, prior: Prior, on_tick: OnTick
) -> tuple[Evidence, TwoHeaded | None]:
    """Evidence of the method; or, where the labels alone teach more, that of a classifier of theirs, and it."""
    found = cross_fitted(config, data, pool, prior, on_tick)
    if config.recipe.method == "supervised" or config.recipe.self_training == "always":
        return found, None
    if not ranks.any_rank(not bool(found.right.all()), pool.images.device):
        return found, None  # nothing can be right more often
    recipe = config.recipe.model_copy(update={"method": "supervised"})
    of_labels = config.model_copy(update={"recipe": recipe})
    other = cross_fitted(of_labels, data, pool, prior, on_tick)
    # Ranks that compute a little differently have to agree.
    if not ranks.any_rank(int(other.right.sum()) > int(found.right.sum()), pool.images.device):
        return found, None
    examples = data.training.examples
    seen = examples.views.images.to(pool.images.device), examples.labels.to(pool.images.device)
    said = (
        f"The classifier learns from the labels alone: of {len(found.labels)} labeled images that it had not seen "
        f"{int(other.right.sum())} are right then, and {int(found.right.sum())} after learning from the pool, too."
    )
    on_tick(Tick(done=recipe.num_steps, total=recipe.num_steps, unit="steps of cross-fitting", info=said))
    return other, fitted(of_labels, data, seen, pool.images, prior, on_tick)


def cross_fitted(config: TrainConfig, data: Data, pool: Views, prior: Prior, on_tick: OnTick) -> Evidence:
    """Evidence of all labeled images, by K trainings that each leave a fold out; `pool` holds the cached features."""
    examples = data.training.examples
    device = pool.images.device
    examples = replace(examples, views=examples.views.map(lambda part: part.to(device)))
    folds = FOLDS_OF_LABELS if config.recipe.method == "supervised" else FOLDS
    fold_L = calibration.folds_of(examples.labels.tolist(), folds, config.seed)
    logits_LK = torch.empty(len(fold_L), len(data.classes))

    def on_step(tick: Tick) -> None:
        each = config.recipe.num_steps
        on_tick(replace(tick, done=fold * each + tick.done, total=folds * each))

    for fold in range(folds):
        hidden_L = fold_L == fold
        if hidden_L.any():
            logits_LK[hidden_L] = judged_without(config, data, examples, hidden_L, (pool, prior), on_step)
    embeddings_LD = examples.views.images[:, 0].float().cpu()
    # A person's marks choose images by what the model says of them: they are no random sample.
    unmarked = slice(0, data.num_labeled - data.training.num_labeled_by_marks)
    return Evidence(
        logits=logits_LK[unmarked],
        labels=examples.labels.cpu()[unmarked],
        sha256=examples.sha256[unmarked],
        references=embeddings_LD,
        distances=calibration.nearest(embeddings_LD, embeddings_LD, themselves=True)[unmarked],
        method="cross-fitted",
    )


def judged_without(
    config: TrainConfig,
    data: Data,
    examples: Labeled,
    hidden_L: Tensor,
    routed: tuple[Views, Prior],
    on_tick: OnTick,
) -> Tensor:
    """Logits (H, K) of the hidden labeled images, by the method trained without their labels."""
    pool, prior = routed
    views, classes = examples.views, examples.labels.to(pool.images.device)
    scores = torch.cat((prior.scores, prior.panel.score(views.tiles[hidden_L])))
    seen, unlabeled = views.images[~hidden_L], torch.cat((pool.images, views.images[hidden_L]))
    classifier = fitted(config, data, (seen, classes[~hidden_L]), unlabeled, prior._replace(scores=scores), on_tick)
    with torch.no_grad():
        logits: Tensor = classifier(views.images[hidden_L]).real.float().cpu()
    return logits


def fitted(
    config: TrainConfig,
    data: Data,
    examples: tuple[Tensor, Tensor],
    unlabeled: Tensor,
    prior: Prior,
    on_tick: OnTick = ignore,
) -> TwoHeaded:
    """Train a probe on cached views (B, V, D) and labels (B,), and on unlabeled views whose scores `prior` has."""
    (seen, classes), recipe, device = examples, config.recipe, unlabeled.device
    torch.manual_seed(config.seed)
    # Weights of an earlier run may have been trained on the hidden labels.
    untrained = config.model_copy(update={"network": config.network.model_copy(update={"init_from": None})})
    method = methods.build(
        recipe,
        config.controls,
        networks.probe(untrained, data).to(device),
        prior,
        devices.autocast(config.machine.precision, device),
        num_images=len(unlabeled),
        marked=data.training.marked.to(device) if data.training.marked else None,
    )
    of_labeled = Order(len(classes), recipe.batch_size, config.seed)
    of_unlabeled = Order(len(unlabeled), recipe.batch_size * recipe.unlabeled_ratio, config.seed + 1)
    for step in range(recipe.num_steps):
        picked, rows = of_labeled.batch(step).to(device), of_unlabeled.batch(step).to(device)
        batch = Batch(seen[picked], seen[picked], classes[picked], unlabeled[rows], unlabeled[rows], rows)
        method.step(step, batch, lambda rows: unlabeled[rows], Rng(generator(config.seed, step, device)))
        on_tick(Tick(done=step + 1, total=recipe.num_steps, unit="steps of cross-fitting"))
    return method.classifier.average


def held_out(data: Data, rows: Tensor, logits_HK: Tensor, embeddings_LD: Tensor) -> Evidence:
    """Evidence of the labeled images at `rows` (H,), kept from the classifier that gave their logits."""
    examples = data.training.examples
    shown = torch.ones(len(examples.labels), dtype=torch.bool)
    shown[rows] = False
    return Evidence(
        logits=logits_HK,
        labels=examples.labels.cpu()[rows],
        sha256=tuple(examples.sha256[row] for row in rows.tolist()),
        references=embeddings_LD[shown],
        distances=calibration.nearest(embeddings_LD[rows], embeddings_LD[shown]),
        method="held-out",
    )
