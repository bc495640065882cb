"""Measure means against maxima, and whitening against its matrix product.

    python bench/pipeline.py [--workers 2] [--dim 2048] [--json FILE]

See bench/README.md for what the columns mean.
"""

import statistics

import numpy as np
from run import case_of, feature_maps, measure, naive, options_of, summary, write_json

import rmac

SHAPES = [(8, 2048, 24, 32), (16, 2048, 14, 14), (64, 2048, 7, 7)]


def main():
    parser = options_of(__doc__, SHAPES, ["float32"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dim", type=int, default=2048, help="of whitened vectors")
    options = parser.parse_args()
    results = []
    print(f"{'shape':>18} {'layout':>6} {'dtype':>8} {'candidate':<12} {'ms':>9} {'ratio':>7}")
    for shape in options.shapes:
        for layout in options.layouts:
            for dtype in options.dtypes:
                x = feature_maps(shape, layout, dtype)
                # Measured separately: threads of a BLAS stay busy for a while after their work.
                for candidates in (pools(x, layout, options), whitening(x, layout, options)):
                    for row in rows(measure(candidates, options.repeats)):
                        row |= {"shape": list(shape), "layout": layout, "dtype": dtype}
                        results.append(row)
                        show(row)
    write_json(options, results)


def pools(x, layout, options):
    """Return functions that describe with each pool, after a check against NumPy."""
    maps = x if layout == "NCHW" else x.transpose(0, 3, 1, 2)
    candidates = {}
    for name, pool, p in (
        ("max", "max", 3.0),
        ("mean", "mean", 3.0),
        ("gem p=3", "gem", 3.0),
        ("gem p=2.92", "gem", 2.92),
    ):
        settings = {"layout": layout, "levels": options.levels, "pool": pool, "p": p}
        result = rmac.rmac(x[:1], **settings)
        expected = naive(maps[:1], options.levels, pool, p)
        np.testing.assert_allclose(result, expected, atol=1e-5, err_msg=name)
        candidates[name] = lambda s=settings: rmac.rmac(x, workers=options.workers, **s)
    return candidates


def whitening(x, layout, options):
    """Return a function that whitens, after a check, and one that only multiplies matrices."""
    settings = {"layout": layout, "levels": options.levels}
    regions = rmac.rmac(x, aggregate="none", **settings)
    vectors = np.ascontiguousarray(regions.reshape(-1, regions.shape[-1]))
    rng = np.random.default_rng(0)
    mean = rng.random(vectors.shape[1])
    projection = rng.standard_normal((options.dim, vectors.shape[1]))
    w = rmac.Whitening.from_projection(mean, projection)

    whitened = (regions[:1].astype(np.float64) - mean) @ projection.T
    total = (whitened / np.linalg.norm(whitened, axis=2, keepdims=True)).sum(axis=1)
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    result = rmac.rmac(x[:1], whitening=w, **settings)
    np.testing.assert_allclose(result, expected, atol=1e-5)

    factor = projection.astype(vectors.dtype)
    product = np.empty((len(vectors), options.dim), vectors.dtype)
    return {
        "product": lambda: np.matmul(vectors, factor.T, out=product),
        "whitened": lambda: rmac.rmac(x, whitening=w, **settings),
    }


def rows(times):
    """Yield medians, and times as multiples of the first candidate's."""
    first = statistics.median(next(iter(times.values())))
    for name, samples in times.items():
        yield summary(name, samples) | {"ratio": statistics.median(samples) / first}


def show(row):
    print(
        f"{case_of(row)} {row['candidate']:<12} {row['ms']:9.3f} {row['ratio']:7.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
