"""All training methods by name."""

from contextlib import AbstractContextManager

from models.baselines import FixMatch, OpenSet, Supervised
from models.classifier import TwoHeaded
from models.controls import RoutedByTruth, risk
from models.detector import Detector
from models.iomatch import IOMatch
from models.learner import Fitted
from models.marked import Marked
from models.openmatch import OpenMatch
from models.recipe import Controls, Recipe
from models.routed import Prior, RoutedByPanel
from models.rsmatch import RSMatch

Method = RSMatch | Supervised  # and what is derived of them


def build(
    recipe: Recipe,
    controls: Controls,
    classifier: TwoHeaded,
    detector: Detector | Prior,
    autocast: AbstractContextManager[object],
    *,
    num_images: int,
    marked: Marked | None = None,
) -> Method:
    """Build the recipe's method around networks that are on their device; only RSMatch takes `detector`.

    The detector is a network to train, or a panel that has scored the pool. `num_images` is the size of the pool.
    """
    classifier.set_norm_momentum(recipe.norm_momentum)
    num_features, num_classes = classifier.num_features, classifier.real.out_features
    device = next(classifier.parameters()).device
    match recipe.method:
        case "rsmatch":
            if isinstance(detector, Prior) and controls.trains_detector:
                return RoutedByPanel(
                    recipe, controls, classifier, detector, autocast, num_images=num_images, marked=marked
                )
            kind = RSMatch if controls.trains_detector else RoutedByTruth
            taken = Fitted(detector.panel) if isinstance(detector, Prior) else detector
            return kind(
                recipe, controls, classifier, taken, autocast,
                num_images=num_images, marked=marked, risk=risk(controls),
            )  # fmt: skip
        case "fixmatch":
            return FixMatch(recipe, controls, classifier, autocast, num_images=num_images)
        case "openmatch":
            return OpenSet(recipe, classifier, OpenMatch(num_features, num_classes).to(device), autocast)
        case "iomatch":
            heads = IOMatch(
                num_features, num_classes, recipe.confidence_threshold, weak_gradient=controls.weak_gradient
            )
            return OpenSet(recipe, classifier, heads.to(device), autocast)
        case "supervised":
            return Supervised(recipe, classifier, autocast)
