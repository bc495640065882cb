"""Measure what re-ranking and query expansion change: mean average precision on photographs.

python bench/retrieval.py FOLDER [--crop 1.0] [--top 20] [--dim 64]

FOLDER holds a file NAME.npy for each photograph, its feature map (C, H, W) after a ReLU, and
groups.json, {NAME: group}. Photographs of one group show the same; null is a group of its own. Each
photograph that has a partner is a query, whole or cropped, and is left out of its own ranking.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

import rmac

SEARCHES = ("best", "grid", "aml")
NEIGHBOURS = (1, 2, 5)
PRESET = "matlab"


class Photographs(NamedTuple):
    maps: list
    levels: list  # of the maps, for the search of the paper
    queries: list  # the photographs that have partners
    crops: list  # of the maps of queries
    positives: list  # the partners of each query


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crop", type=float, default=1.0, help="share of each side in a query")
    parser.add_argument("--top", type=int, default=20, help="maps to re-rank for each query")
    parser.add_argument("--dim", type=int, default=64, help="components of the whitening")
    options = parser.parse_args()
    photographs = load(options.folder, options.crop)
    regions = rmac.rmac([*photographs.maps][:1], preset=PRESET, aggregate="none")
    learned = rmac.Whitening(options.dim)
    for x in photographs.maps:
        learned.partial_fit(rmac.rmac(x[None], preset=PRESET, aggregate="none"))
    print(f"{len(photographs.maps)} photographs, {len(photographs.queries)} queries", end=", ")
    print(f"{regions.shape[2]} channels, crop {options.crop:g}, top {options.top}")
    print(f"{'mAP':<34} {'plain':>7} {'whitened':>9}")
    plain, whitened = (measure(photographs, options.top, w) for w in (None, learned))
    for name in plain:
        print(f"{name:<34} {plain[name]:7.3f} {whitened[name]:9.3f}", flush=True)


def load(folder, share):
    groups = json.loads((folder / "groups.json").read_text())
    maps = [np.load(folder / f"{name}.npy") for name in groups]
    scale = np.float32(128 / max(x.max() for x in maps))  # the levels end at 128
    partners = [
        [i for i, other in enumerate(groups.values()) if group and other == group and i != own]
        for own, group in enumerate(groups.values())
    ]
    queries = [i for i, some in enumerate(partners) if some]
    return Photographs(
        maps,
        [rmac.quantize(x * scale) for x in maps],
        queries,
        [centre(maps[i], share) for i in queries],
        [partners[i] for i in queries],
    )


def centre(x, share):
    """Return the middle of a map, with a share of each side."""
    height, width = x.shape[1:]
    rows, columns = (max(1, round(share * side)) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    return x[:, top : top + rows, left : left + columns]


def measure(photographs, top, whitening):
    """Return the mean average precision after each step, by its name."""
    options = {"preset": PRESET, "whitening": whitening}
    descriptors = rmac.rmac(photographs.maps, **options)
    vectors = rmac.rmac(photographs.crops, **options)

    def ranked(queries):
        ranks = np.argsort(-(queries @ descriptors.T), axis=1, kind="stable")
        others = zip(ranks, photographs.queries, strict=True)
        return np.stack([row[row != own] for row, own in others])

    ranks = ranked(vectors)
    steps = {"R-MAC": ranks}
    for count in NEIGHBOURS:
        for alpha in (0, 3):
            expanded = rmac.expand(vectors, descriptors, ranks[:, :count], alpha=alpha)
            steps[f"expanded by {count}, alpha {alpha}"] = ranked(expanded)
    for search in SEARCHES:
        names = [f"re-ranked, {search}"]
        names += [f"re-ranked, {search}, expanded by {count}" for count in NEIGHBOURS]
        steps |= {name: ranks.copy() for name in names}
        for i, vector in enumerate(vectors):
            orders = reranked(photographs, i, ranks[i, :top], vector, search, options)
            for name, order in zip(names, orders, strict=True):
                steps[name][i, :top] = order
    scores = {
        name: rmac.average_precision(rows, photographs.positives) for name, rows in steps.items()
    }
    return {name: ap.mean() for name, ap in scores.items()}


def reranked(photographs, i, first, vector, search, options):
    """Return what was ranked first for a query in new orders: re-ranked, and then expanded."""
    crop = photographs.crops[i]
    maps = photographs.levels if search == "aml" else photographs.maps
    boxes = rmac.localize(
        [maps[n] for n in first],
        crop.max(axis=(1, 2)),
        search=search,
        aspect=crop.shape[1] / crop.shape[2],
    ).boxes
    found = rmac.rerank(vector, [photographs.maps[n] for n in first], boxes, **options)
    yield first[found.order]
    for count in NEIGHBOURS:
        expanded = rmac.expand(vector[None], found.vectors, found.order[None, :count])[0]
        yield first[np.argsort(-(found.vectors @ expanded), kind="stable")]


if __name__ == "__main__":
    main()
