"""Chooses the confidence from which labels are promised to be right, and says the promise with what it assumes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import Incompatible
from pipelines.export.config import ExportConfig
from pipelines.run import labels
from pipelines.run.labels import Labels

if TYPE_CHECKING:
    from models.calibration import Limit


@dataclass(frozen=True)
class Promise:
    """From which confidence on an image keeps its label; None: no label of the model can be promised to be right."""

    confidence: float | None
    sentence: str

    def holds(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows (N,) of a scored pool keep their label: the sure ones, and those that a person labeled.

        Images that are far from all labeled ones keep none, because they may show none of the classes.
        """
        confidence = rows["confidence"].to_numpy()
        by_person = pc.fill_null(pc.equal(rows["marked"], "real"), False).to_numpy() & (confidence == 1)
        if self.confidence is None:
            return np.asarray(by_person)
        is_near = rows["typicality"].fill_null(1.0).to_numpy() > labels.FAR
        return np.asarray(by_person | (is_near & (confidence >= np.float32(self.confidence))))

    def applied(self, rows: pa.Table) -> pa.Table:
        """Rows of which only those that keep their label have one."""
        lost = pa.array(~self.holds(rows))
        for name in ("pseudo_label", "confidence"):
            column = rows.schema.field(name)
            kept = pc.if_else(lost, pa.scalar(None, column.type), rows[name])
            rows = rows.set_column(rows.column_names.index(name), column, kept)
        return rows


def make(config: ExportConfig, run: Path) -> Promise | None:
    """Make the promise that `config` asks for, None if for none; Incompatible if the labels were never measured."""
    if config.label_precision is None:
        return None
    import torch  # not before it is asked for: it takes seconds

    from models import calibration
    from pipelines.run import calibration as stored

    evidence, measured = stored.load(run), labels.load(run)
    if evidence is None or measured is None:
        raise Incompatible(
            f"--label-precision: {run} has too few labeled images that its classifier has not seen, so nothing can be "
            "promised. Train with more labeled images of each class, then run `curate score`."
        )
    shares = [each.pool_share for each in measured.classes if each.pool_share is not None]
    weights = torch.ones(len(evidence.labels), dtype=torch.float64)
    if len(shares) == len(measured.classes):
        weights = calibration.weigh(evidence.labels, torch.tensor(shares, dtype=torch.float64))
    near = evidence.typicality_of_own > labels.FAR
    confidence = evidence.calibration.probs(evidence.logits).amax(1)
    precision, level = config.label_precision, config.confidence_level
    found = calibration.limit(confidence[near], evidence.right[near], weights[near], precision=precision, level=level)
    asked = f"{precision:.0%} of the labels are right, with {level:.0%} confidence"
    if found.confidence is None:
        helps = _what_helps(found, measured)
        return Promise(None, f"No label of the model goes out: that {asked}, cannot be promised. {helps}")
    return Promise(
        found.confidence,
        f"Labels go out from a confidence of {found.confidence:.3f} on. Of real images of the classes {asked}, if the "
        f"labeled images are a random sample of each class ({found.right_above} of the {found.num_above} surest are "
        "right).",
    )


def _what_helps(found: "Limit", measured: Labels) -> str:
    """How many more labels would allow the promise, and of which classes."""
    known = [each for each in measured.classes if each.found is not None]
    worst = ", ".join(each.name for each in sorted(known, key=lambda each: each.found or 0.0)[: labels.LISTED])
    # A training end to end judges only the labeled images that it keeps from its classifier.
    where = "" if measured.method == "cross-fitted" else " that are kept from the classifier (calibration_share)"
    if found.num_above < found.needed:
        more = f"It takes {found.needed} labeled images{where} or more, all right, and there are {found.num_above}."
    else:
        more = (
            f"Of the {found.num_above} labeled images with the highest confidence {found.right_above} are right, and "
            f"{found.needed} would have to be. About {measured.num_labeled} more would help."
        )
    return f"{more} Label images of {worst} with `curate review --order labels`, and train again."
