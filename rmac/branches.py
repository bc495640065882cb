"""Pooling by branches: convolutions of several sizes, then ReLU, max pooling and their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from rmac._arrays import feature_map
from rmac._backend import Array, Backend, backend_of, require_same_device
from rmac._checks import ask, is_list, is_sequence, items_of, one_or_two_ints, type_name
from rmac._dlpack import from_foreign, snapshot
from rmac._dtypes import dtype_info
from rmac._floats import default_floats
from rmac.operators import public_operator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmac._typing import ArrayT, NumPyArray

    KernelSizes = Sequence[int | Sequence[int] | None]

__all__ = ["branch_pool"]

_BLOCK = 32 << 20  # bytes of the images that are computed at once, with all that is made of them

Window = tuple[int, int] | None


@overload
def branch_pool(
    x: NumPyArray, /, weights: Sequence[NumPyArray], kernel_sizes: KernelSizes
) -> NumPyArray: ...
@overload
def branch_pool(x: ArrayT, /, weights: Sequence[ArrayT], kernel_sizes: KernelSizes) -> ArrayT: ...
@public_operator("BranchPool")
def branch_pool(
    backend: Backend,
    x: Array,
    /,
    weights: Sequence[Array],
    kernel_sizes: KernelSizes,
) -> Array:
    r"""Average branches, each a convolution, a ReLU and a maximum over windows.

    With k branches of weights :math:`w_i` and windows :math:`k_i`,

    .. math:: \frac{1}{k} \sum_i \mathrm{maxpool}_{k_i}(\mathrm{relu}(\mathrm{conv}(x, w_i)))

    Convolutions are cross-correlations, as in neural networks. Kernels and windows move by one
    cell and stay inside the map: a kernel or window of n cells shortens a side by n - 1.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Feature maps: float16, bfloat16, float32, float64, uint8 or int8, in any strides.
    weights : list of k arrays, shape (C_out, C, kh, kw)
        The kernel of each branch, of any dtype that `x` may have, on the device of `x`.
    kernel_sizes : list of k int, (int, int) or None
        The window of each branch: cells along both sides, or along height and width. None is the
        whole map; the result then has no height and width.

    Returns
    -------
    array, shape (N, C_out, h, w), or (N, C_out) where windows are None
        The mean of the branches, float64 for a float64 `x`, else float32. It is computed in the
        same dtype. NaN propagates.

    Raises
    ------
    TypeError
        If an argument is of the wrong type or dtype, or weights are on another device than `x`.
    ValueError
        If a shape or value is wrong, a kernel or window is larger than the map, or the results of
        branches differ in shape.

    See Also
    --------
    region_pool : Maxima over regions, without convolutions.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.random((2, 64, 24, 32), dtype=np.float32)
    >>> small, large = (rng.standard_normal((128, 64, k, k), dtype=np.float32) for k in (1, 3))
    >>> rmac.branch_pool(x, [small, large], [None, None]).shape
    (2, 128)
    >>> rmac.branch_pool(x, [small, large], [5, 3]).shape
    (2, 128, 20, 28)
    """
    x, info = feature_map(backend, x, "NCHW")
    dtype = info.descriptor
    weights = _checked_weights(weights, x)
    windows = _checked_windows(kernel_sizes, len(weights))
    out = backend.empty(_common_shape(x.shape, weights, windows), dtype, x)
    xp = backend.namespace()
    with backend.device_context(x), default_floats():
        kernels = [xp.ascontiguousarray(w.transpose(2, 0, 3, 1), dtype) for w in weights]
        images = _images_at_once(x.shape, kernels)
        for first in range(0, len(x), images):
            block = xp.ascontiguousarray(x[first : first + images], dtype)
            branches = zip(kernels, windows, strict=True)
            total = sum(_branch(block, kernel, window, xp) for kernel, window in branches)
            out[first : first + images] = total / len(kernels)
    return out


def _checked_weights(weights: Any, x: Array) -> list[Array]:
    """Return the weights of each branch, or raise if they do not fit the maps."""
    if not is_list(weights):
        raise TypeError(f"weights: expected a list of arrays, got {type_name(weights)}")
    weights = from_foreign(snapshot(weights, "weights"), "weights")
    if not weights:
        raise ValueError("weights: expected at least one array, got none")
    channels, height, width = x.shape[1:]
    kernels: list[Array] = []
    for i, weight in enumerate(weights):
        name = f"weights[{i}]"
        require_same_device(weight, name, x)
        kernel = backend_of(weight, name).plain(weight, name)
        kernels.append(kernel)
        dtype_info(kernel.dtype, name)
        if kernel.ndim != 4 or 0 in kernel.shape[2:]:
            raise ValueError(f"{name}: expected shape (C_out, C, kh, kw), got {kernel.shape}")
        if kernel.shape[1] != channels:
            raise ValueError(
                f"{name}: expected {channels} channels as x has, got {kernel.shape[1]}"
            )
        kh, kw = kernel.shape[2:]
        if kh > height or kw > width:
            raise ValueError(
                f"{name}: expected a kernel of at most the map's {height}x{width} cells, "
                f"got {kh}x{kw}"
            )
    return kernels


def _checked_windows(sizes: Any, count: int) -> list[Window]:
    """Return the window of each branch, or raise."""
    expected = "a list of sizes"
    if not is_sequence(sizes):
        raise TypeError(f"kernel_sizes: expected {expected}, got {type_name(sizes)}")
    found = ask("kernel_sizes", sizes, len, expected)
    if found != count:
        raise ValueError(f"kernel_sizes: expected {count} as there are weights, got {found}")
    return [
        None if size is None else one_or_two_ints(f"kernel_sizes[{i}]", size)
        for i, size in enumerate(items_of("kernel_sizes", sizes, count, expected))
    ]


def _common_shape(
    shape: tuple[int, ...], weights: list[Array], windows: list[Window]
) -> tuple[int, ...]:
    """Return the shape of every branch's result, or raise if they differ."""
    shapes = []
    for i, (kernel, window) in enumerate(zip(weights, windows, strict=True)):
        sides = [n - k + 1 for n, k in zip(shape[2:], kernel.shape[2:], strict=True)]
        if window and (window[0] > sides[0] or window[1] > sides[1]):
            raise ValueError(
                f"kernel_sizes[{i}]: expected a window of at most the {sides[0]}x{sides[1]} cells "
                f"that the convolution leaves, got {window[0]}x{window[1]}"
            )
        cells = [n - k + 1 for n, k in zip(sides, window, strict=True)] if window else []
        shapes.append((shape[0], kernel.shape[0], *cells))
    if len(set(shapes)) > 1:
        raise ValueError(
            "weights, kernel_sizes: expected branches of one shape, "
            f"got {', '.join(map(str, shapes))}"
        )
    return shapes[0]


def _images_at_once(shape: tuple[int, ...], kernels: list[Array]) -> int:
    """Return how many images fit a block, with what the largest branch makes of them.

    That is a shifted copy of the map for each column of the kernel, and at most four planes of each
    filter at a time: the total of the branches so far, the sums, and two steps of their maxima.
    """
    _, channels, height, width = shape
    planes = max(kw * channels + 4 * filters for _, filters, kw, _ in [k.shape for k in kernels])
    size = (channels + planes) * height * width * kernels[0].itemsize
    return max(1, int(_BLOCK // max(1, size)))


def _branch(x: Array, kernel: Array, window: Window, xp: Any) -> Array:
    sums = _convolution(x, kernel, xp)
    if window is None:
        maxima = sums.max(axis=(2, 3))
    else:
        maxima = _running_maximum(sums, window[1], xp)
        maxima = _running_maximum(maxima.swapaxes(2, 3), window[0], xp).swapaxes(2, 3)
    return xp.maximum(maxima, 0)  # ReLU after the maximum: the result is the same, with less work


def _convolution(x: Array, kernel: Array, xp: Any) -> Array:
    """Convolve packed maps (N, C, H, W) with a kernel (kh, C_out, kw, C): (N, C_out, h, w).

    The rows of a map lie one after the other, so an offset in the kernel shifts all cells by the
    same distance. One shifted copy of the map for each column of the kernel makes each row of the
    kernel one matrix product. Sums that run over the end of a row are computed too, and left out
    at the end.
    """
    images, channels, height, width = x.shape
    kh, filters, kw, _ = kernel.shape
    rows, columns = height - kh + 1, width - kw + 1
    cells = x.reshape(images, channels, height * width)
    last = cells.shape[2] - kw + 1
    shifted = [cells[:, :, j : j + last] for j in range(kw)]
    cells = xp.concatenate(shifted, axis=1) if kw > 1 else cells
    kernel = kernel.reshape(kh, filters, kw * channels)
    length = last - (kh - 1) * width
    sums = xp.zeros((images, filters, rows * width), x.dtype)
    computed = sums[:, :, :length]
    product = xp.empty(computed.shape, x.dtype)
    for i in range(kh):
        xp.matmul(kernel[i], cells[:, :, i * width : i * width + length], out=product)
        computed += product
    return sums.reshape(images, filters, rows, width)[..., :columns]


def _running_maximum(x: Array, window: int, xp: Any) -> Array:
    """Return the maxima of all runs of `window` neighbours along the last axis.

    Each step joins the maxima of two runs that are there already, so that their length doubles.
    """
    length = 1
    while length < window:
        step = min(length, window - length)
        x = xp.maximum(x[..., :-step], x[..., step:])
        length += step
    return x
