"""How often what the tool says of itself is true: its lower bound of the share, and the interval of its AUROC.

    python tests/bench/bounds.py --work /tmp/native     (the folder of tests/bench/native.py, whose features it takes)

draws 30 seeds of clean and full pools of photographs, and 100 of small pools of drawn features with one shifted
direction. Each is judged by the product's own code.
"""

import argparse
from pathlib import Path

import native  # beside this file
import numpy as np
import torch

from models.panel import FOLDS, Panel
from pipelines.run import evaluation
from pipelines.train.photographs import Evidence, Judged, judge

POOLS = (  # set, labeled, alpha, known
    ("matched", 60, 0.0, 0), ("wild", 150, 0.0, 0), ("wild", 500, 0.0, 0),
    ("matched", 60, 1.0, 0), ("wild", 150, 0.5, 0), ("wild", 150, 0.5, 50),
)  # fmt: skip
SMALL = ((36, 24, 0.5, 3.0), (36, 24, 0.0, 0.0), (60, 24, 0.5, 3.0), (40, 12, 0.5, 3.0))  # pool, labeled, share, shift
WIDTH, SHIFTED = 300, 20  # features, and those of them in which synthetic images differ


def of_photographs(images: native.ImageSet, setting: native.Setting, seed: int) -> tuple[Judged, np.ndarray]:
    labeled, pool, known = native.draw(images, setting.images, setting, seed)
    features, widths = native.chosen(images, setting)
    nothing = torch.zeros(len(pool), dtype=torch.float64)
    parts = features[pool], features[labeled], features[known], nothing, nothing, nothing > 0
    return judge(Panel(widths), Evidence(*parts, len(labeled), bool(known))), images.synthetic[pool] == 1


def of_drawn(num: int, labeled: int, share: float, shift: float, seed: int) -> Judged:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(num + labeled, WIDTH, generator=rng)
    values[: round(share * num), :SHIFTED] += shift
    packed = torch.cat((values, torch.randint(0, FOLDS, (len(values), 1), generator=rng).float()), 1)
    nothing = torch.zeros(num, dtype=torch.float64)
    given = packed[:num], packed[num:], packed[:0], nothing, nothing, nothing > 0
    return judge(Panel({"half": WIDTH // 2, "rest": WIDTH // 2}), Evidence(*given, labeled, False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    sets = {name: native.load(name, "as-is", work) for name in ("matched", "wild")}
    torch.set_num_threads(1)
    print("| pool | bound holds | AUROC | interval holds |\n|---|---|---|---|", flush=True)
    for name, labels, alpha, known in POOLS:
        setting = native.Setting("", name, labels, alpha, known=known)
        holds, covered, aurocs = [], [], []
        for seed in range(100, 130):
            judged, truth = of_photographs(sets[name], setting, seed)
            holds.append(judged.quality.share_at_least <= truth.mean() + 1e-9)
            if truth.any():
                aurocs.append(evaluation.auroc(judged.scores.numpy(), truth))
                low, high = judged.quality.auroc_interval or (0.5, 1.0)
                covered.append(low <= aurocs[-1] <= high)
        told = f"{np.mean(aurocs):.3f} | {sum(covered)} of {len(covered)}" if aurocs else "no synthetic image |"
        title = f"{name}, {labels} labels, alpha {alpha:g}, {known} known"
        print(f"| {title} | {sum(holds)} of {len(holds)} | {told} |", flush=True)
    for num, labeled, share, shift in SMALL:
        found = [of_drawn(num, labeled, share, shift, seed).quality.share_at_least for seed in range(100)]
        title = f"drawn, {num} images, {labeled} labels, share {share:g}"
        print(f"| {title} | {sum(each <= share + 1e-9 for each in found)} of {len(found)} | | |", flush=True)


if __name__ == "__main__":
    main()
