"""The methods that can be compared by name: what each changes in the settings of a training."""

from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

Changes = Mapping[str, Any]  # nested settings of a training, as in a recipe file


class Method(NamedTuple):
    """What a method changes in the settings of the training, and what its pool holds."""

    changes: Changes
    real_only: bool = False  # the pool without its synthetic images, by truth


def merged(*settings: Changes) -> dict[str, Any]:
    """Nested settings, of which later ones override earlier ones key by key."""
    return reduce(_merged, settings, {})


def _merged(values: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    result = dict(values)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if nested else value
    return result


def _recipe(**changes: Any) -> Changes:
    return {"recipe": changes}


def _rsmatch(**controls: Any) -> Changes:
    return {"recipe": {"method": "rsmatch"}, "controls": controls}


# Our additions to the paper's method in the order in which the ablation adds them, each with what switches it off.
ADDITIONS: Mapping[str, Changes] = {
    "bootstrap": _rsmatch(detector_init="random"),
    "residual-evidence": _rsmatch(residual_evidence=False),
    "share-thresholds": _rsmatch(share_thresholds=False),
    "confident-real": _rsmatch(confident_real=False),
    "residual-planes": _rsmatch(residual_planes=False),
    "residual-features": _rsmatch(residual_features=False),
    "equalized-spectrum": merged(_rsmatch(resampled_views=True), _recipe(equalize_spectrum=False)),
    "resampled-views": _rsmatch(resampled_views=False),
    "split-norms": _rsmatch(split_norms=False),
    "average-over-real": _rsmatch(average_over_real=False),
}
_NAMES = tuple(ADDITIONS)
# The paper's method, then one addition after the other; with the last of them it is RSMatch as it is.
ABLATION = ("paper", *(f"plus-{name}" for name in _NAMES[:-1]), "rsmatch")

METHODS: Mapping[str, Method] = {
    "supervised": Method(_recipe(method="supervised")),
    "fixmatch": Method(_recipe(method="fixmatch")),
    "fixmatch-real": Method(_recipe(method="fixmatch"), real_only=True),  # with as many unlabeled images a step
    "flexmatch": Method(_recipe(method="fixmatch", rule="flexmatch")),
    "freematch": Method(_recipe(method="fixmatch", rule="freematch")),
    "softmatch": Method(_recipe(method="fixmatch", rule="softmatch")),
    "openmatch": Method(_recipe(method="openmatch")),
    "iomatch": Method(_recipe(method="iomatch")),
    "rsmatch": Method(_rsmatch()),
    "rsmatch-discard": Method(_rsmatch(dummy_weight=0.0)),  # images that the detector flags teach nothing
    "rsmatch-oracle": Method(_rsmatch(routing="oracle")),
    "rsmatch-oracle-discard": Method(_rsmatch(routing="oracle", dummy_weight=0.0)),
    "rsmatch-real-labels": Method(_rsmatch(dummy_labels="real")),  # the real head labels for the dummy head
    "rsmatch-running-targets": Method(_rsmatch(synthetic_targets="running")),
    "rsmatch-random": Method(_rsmatch(routing="random")),
    "rsmatch-flexmatch": Method(merged(_rsmatch(), _recipe(rule="flexmatch"))),
    "rsmatch-freematch": Method(merged(_rsmatch(), _recipe(rule="freematch"))),
    "rsmatch-softmatch": Method(merged(_rsmatch(), _recipe(rule="softmatch"))),
    "rsmatch-global-queue": Method(_rsmatch(detector_examples="global-queue")),
    "rsmatch-nnpu": Method(_rsmatch(detector_examples="nnpu")),  # it is told the pool's true share
    "rsmatch-truth": Method(_rsmatch(detector_examples="truth")),
    "rsmatch-as-is": Method(merged(_rsmatch(), _recipe(equalize_spectrum=False))),  # no resampled views, either
    **{f"rsmatch-without-{name}": Method(changes) for name, changes in ADDITIONS.items()},
    **{
        name: Method(merged(*(ADDITIONS[later] for later in _NAMES[number:])))
        for number, name in enumerate(ABLATION[:-1])
    },
}
