"""What an error message advises if a call looks like a frequent mistake.

Each function returns "" or an advice that starts with "; ". It runs only when an error, or a
warning, is certain.
"""

from __future__ import annotations

import sys
from importlib import import_module
from math import isqrt
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import numpy.typing as npt

# Words of other libraries for the options of this one.
_SYNONYMS = {
    "average": "mean",
    "avg": "mean",
    "caffe": "caffe2",
    "cat": "concat",
    "channels_first": "NCHW",
    "channels_last": "NHWC",
    "cnnimageretrieval-pytorch": "cirtorch",
    "maximum": "max",
    "nlc": "NTC",
    "paper": "matlab",
    "vissl": "matlab",
}
# Of tokens, and of maps that are taken for channels-last ones. Tokens have a multiple of it.
_FEWEST_CHANNELS = 64
_FEWEST_TOKENS = 16
_LEADING_TOKENS = (0, 1, 2, 5)  # none, a class token, DeiT's two, a class token and 4 registers


class _Module(ModuleType):
    """A module that is called where one of its functions is meant."""

    def __call__(self, *_args: object, **_options: object) -> NoReturn:
        raise TypeError("rmac: got a call of the module; rmac.rmac(x) calls the function")

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Let functions that use the module be sent to other processes, as Dask does."""
        return import_module, (self.__name__,)


def advise_callers_of(module: str) -> None:
    """Make a call of the module, instead of the function of its name, tell so."""
    sys.modules[module].__class__ = _Module


def for_word(text: str, choices: Collection[str]) -> str:
    """Return the choice that is meant by another word."""
    wanted = _SYNONYMS.get(text.casefold(), text)
    meant = next((word for word in choices if word.casefold() == wanted.casefold()), None)
    return "" if meant is None else f"; {meant!r} is meant"


def for_type(x: object, name: str) -> str:
    """Return how an object that is no array becomes one."""
    kind = type(x)
    if issubclass(kind, (str, bytes)) or hasattr(kind, "__fspath__"):
        return "; load the file first, as with np.load"
    if issubclass(kind, dict):
        return f"; take one of its values, as with {name}['key']"
    if issubclass(kind, (list, tuple)):
        return f"; np.array({name}) makes an array of numbers"
    if hasattr(kind, "__array__") or hasattr(kind, "__array_interface__"):
        return f"; np.asarray({name}) makes an array of it"
    return f"; pass {name}.data if that is an array" if hasattr(kind, "data") else ""


def for_dtype(kind: str, name: str) -> str:
    """Return how an array of numbers of another dtype becomes a map; `kind` is NumPy's letter."""
    return f"; {name}.astype(np.float32) converts it" if kind in "biuf" else ""


def for_axes(shape: tuple[int, ...], layout: str, name: str) -> str:
    """Return how an array of other axes than those of `layout` becomes a map or a batch."""
    if len(shape) == 4 and layout in ("CHW", "HWC"):
        if shape[0] == 1:
            return f"; the maps of a list have no axis N: {name}[0] removes it"
        return "; the maps of a list have no axis N: call the function for each batch"
    if len(shape) == 3 and layout in ("NCHW", "NHWC"):
        one = f"; {name}[None] adds the axis N to one map"
        return one + _for_tokens(shape, name)
    if len(shape) == 2 and layout in ("NCHW", "NHWC"):
        return f"; one channel of one map is {name}[None, None], and vectors are pooled already"
    if len(shape) == 2 and layout in ("NCT", "NTC"):
        return f"; {name}[None] adds the axis N to one sequence"
    return ""


def _for_tokens(shape: tuple[int, ...], name: str) -> str:
    """Return how tokens (N, T, C) of a vision transformer become maps, if they may be some.

    The shape tells which tokens they are only if the patches fill a square.
    """
    images, tokens, channels = shape
    if channels < _FEWEST_CHANNELS:
        return ""
    for leading in _LEADING_TOKENS:
        side = isqrt(max(0, tokens - leading))
        if side * side == tokens - leading >= _FEWEST_TOKENS:
            some = f"{name}[:, {leading}:]" if leading else name
            return (
                f'; tokens (N, T, C) are maps with layout="NHWC" as '
                f'{some}.reshape({images}, {side}, {side}, {channels}), or layout="NTC"'
            )
    if tokens < _FEWEST_TOKENS or channels % _FEWEST_CHANNELS:
        return ""
    return (
        f'; if they are tokens (N, T, C) of {channels} channels, layout="NTC" takes them, and '
        f'layout="NHWC" those of patches as {name}.reshape({images}, H, W, {channels})'
    )


def for_channels(shape: tuple[int, ...], expected: int) -> str:
    """Return the layout in which a map, seen as (N, C, H, W), has the expected channels."""
    if len(shape) != 4 or shape[3] != expected or expected < _FEWEST_CHANNELS:
        return ""
    return f'; the last axis has {expected}: layout="NHWC" is for channels that come last'


def for_grid(size: tuple[int, int], height: int, width: int) -> str:
    """Return why the size of a grid may not be that of the map."""
    if size == (width, height):
        return "; a grid is made of a height and a width"
    if size[1] == height and width >= _FEWEST_CHANNELS:
        return '; layout="NHWC" is for channels that come last'
    return ""


def for_long_map(height: int, width: int) -> str:
    """Return what to do if the width of a map may be its channels."""
    if width < max(_FEWEST_CHANNELS, 8 * height) or width % 8:
        return ""
    return f' If {width} is the number of channels, layout="NHWC" names the axes.'


def for_boxes(boxes: npt.NDArray[Any], height: int, width: int) -> str:
    """Return how boxes (R, 4), which are not all inside the map, get there."""
    if boxes.shape[1] != 4:
        return ""
    one = np.array([0, 0, 1, 1])
    if _inside(boxes - one, height, width):
        return "; x2 and y2 are inclusive: subtract 1 from those of boxes that exclude them"
    if _inside(boxes[:, [1, 0, 3, 2]], height, width):
        return "; x comes before y: boxes[:, [1, 0, 3, 2]] swaps them"
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1], axis=1)
    if (boxes[:, 2:] < boxes[:, :2]).any() and _inside(corners, height, width):
        return "; boxes are x1, y1, x2, y2, and not x, y, width, height"
    if boxes.min() >= 0 and (boxes.max(axis=0) >= 2 * np.array([width, height] * 2)).any():
        return "; boxes are in cells: divide pixels by the stride of the network"
    return ""


def _inside(boxes: npt.NDArray[Any], height: int, width: int) -> bool:
    low, high = np.hsplit(boxes, 2)
    return bool(((low >= 0) & (low <= high) & (high < (width, height))).all())


def for_boxes_dtype(boxes: npt.NDArray[Any]) -> str:
    """Return how boxes of other numbers than integers become boxes in cells."""
    if boxes.dtype.kind != "f" or not boxes.size or not np.isfinite(boxes).all():
        return ""
    if boxes.min() >= 0 and 0 < boxes.max() <= 1:
        return "; boxes are in cells: multiply shares of the map by its width and height"
    return "; round them to cells, as with np.rint(boxes).astype(int)"


def for_boxes_shape(shape: tuple[int, ...]) -> str:
    """Return what to do with regions of another shape than (R, 4)."""
    if len(shape) == 2 and shape[1] == 5:
        return "; roi_pool takes boxes with a batch index"
    return "; one box is [[x1, y1, x2, y2]]" if shape == (4,) else ""


def for_rois_shape(shape: tuple[int, ...]) -> str:
    """Return what to do with RoIs of another shape than (K, 5)."""
    if len(shape) != 2 or shape[1] != 4:
        return ""
    return "; put the batch index first, or pass a list of boxes (L, 4) for each image"


def for_whitening(value: object) -> str:
    """Return how another object becomes a Whitening."""
    kind = type(value)
    if issubclass(kind, (str, bytes)) or hasattr(kind, "__fspath__"):
        return "; Whitening.load reads a file"
    if issubclass(kind, (tuple, np.ndarray)):
        return "; Whitening.from_projection(mean, projection) takes arrays"
    if kind.__module__.startswith("sklearn."):
        return "; Whitening.from_sklearn takes a PCA"
    if kind.__module__.startswith("faiss."):
        return "; Whitening.from_faiss takes a transform"
    return ""
