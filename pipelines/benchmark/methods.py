"""The methods that can be compared: what each changes in the settings of a training."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Method(NamedTuple):
    """What a method changes in the settings of the training, and what its pool holds."""

    changes: Mapping[str, Any]
    real_only: bool = False  # the pool without its synthetic images, by truth


RSMATCH = {"method": "rsmatch"}
METHODS: Mapping[str, Method] = {
    "supervised": Method({"method": "supervised"}),
    "fixmatch": Method({"method": "fixmatch"}),
    "fixmatch-real": Method({"method": "fixmatch"}, real_only=True),  # with as many unlabeled images a step
    "flexmatch": Method({"method": "fixmatch", "rule": "flexmatch"}),
    "freematch": Method({"method": "fixmatch", "rule": "freematch"}),
    "softmatch": Method({"method": "fixmatch", "rule": "softmatch"}),
    "openmatch": Method({"method": "openmatch"}),
    "iomatch": Method({"method": "iomatch"}),
    "rsmatch": Method(RSMATCH),
    "rsmatch-discard": Method(RSMATCH | {"dummy_weight": 0.0}),  # what the detector flags teaches nothing
    "rsmatch-oracle": Method(RSMATCH | {"routing": "oracle"}),
    "rsmatch-oracle-discard": Method(RSMATCH | {"routing": "oracle", "dummy_weight": 0.0}),
    "rsmatch-shared-norms": Method(RSMATCH | {"split_norms": False}),
    "rsmatch-real-labels": Method(RSMATCH | {"dummy_labels": "real"}),  # the real head labels for the dummy head
    "rsmatch-running-targets": Method(RSMATCH | {"synthetic_targets": "running"}),
    "rsmatch-random": Method(RSMATCH | {"routing": "random"}),
    "rsmatch-flexmatch": Method(RSMATCH | {"rule": "flexmatch"}),
    "rsmatch-freematch": Method(RSMATCH | {"rule": "freematch"}),
    "rsmatch-softmatch": Method(RSMATCH | {"rule": "softmatch"}),
    "rsmatch-global-queue": Method(RSMATCH | {"detector_examples": "global-queue"}),
    "rsmatch-nnpu": Method(RSMATCH | {"detector_examples": "nnpu"}),  # told the pool's true share
    "rsmatch-truth": Method(RSMATCH | {"detector_examples": "truth"}),
    "rsmatch-as-is": Method(RSMATCH | {"equalize_spectrum": False}),  # the detector may see how images were scaled
    "rsmatch-random-start": Method(RSMATCH | {"detector_init": "random"}),  # the paper's way
}
