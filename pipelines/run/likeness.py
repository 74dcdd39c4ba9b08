"""Tells by the pixels whether two pictures are copies of each other: the last word where their hashes are near.

A hash of 64 bits brings candidates together and errs on pictures with little in them: different words, or different
small things, on the same white ground have one hash. So both pictures are compared at 32 × 32 pixels. What counts is
the correlation within blocks of 8 × 8, from which the mean of each block is taken: edges and texture, not where it is
light or dark. Copies of photographs (resized, re-encoded at quality 30, brightened, with a line of text on them) are at
.93 and above, different ones below .72. A picture on an even ground must agree by what is on it, too, and one without
anything in it is nobody's copy.

A crop moves all edges, so parts that lack up to 5 % of a side anywhere, or 10 % around, are compared as well.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.images.appearance import as_seen

ALIKE = 0.9  # correlation from which two pictures are copies
SIDE = 64  # of a look, in pixels

_COMPARED = 32  # pixels a side
_BLOCK = 8
_HOPELESS = 0.2  # correlation below which no alignment helps
_BLANK = 3.0  # gray levels of deviation, up to which a picture shows nothing
_GROUND = 12  # gray levels that an even ground may differ from its median
_ON_IT = 32  # gray levels from which something stands out from it

Gray = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """What a picture looks like: gray (64, 64), and if its edge is even, also what is on that ground (64, 64)."""

    whole: Gray
    content: Gray | None

    @classmethod
    def of(cls, data: bytes) -> Self | None:
        """Look at an image file, within `foreign_images`; None if it cannot be decoded or is blank."""
        try:
            return cls.at(as_seen(data, 4 * SIDE))
        except MemoryError:
            raise  # a problem of this machine, not of the image
        except Exception:  # Pillow's decoders raise almost anything on damaged bytes
            return None

    @classmethod
    def at(cls, picture: Image.Image) -> Self | None:
        """Look at a decoded picture; None if it is blank."""
        gray = picture.convert("L")
        whole = _small(gray)
        if whole.std() < _BLANK:
            return None
        box = _content_box(np.asarray(gray))
        return cls(whole, _small(gray.crop(box)) if box else None)

    def turned(self, number: int) -> "Look":
        """One of the eight ways to mirror and rotate it: by `number` & 3 quarter turns, mirrored before if & 4."""

        def turn(pixels: Gray) -> Gray:
            return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if number & 4 else pixels, number & 3))

        return Look(turn(self.whole), None if self.content is None else turn(self.content))

    def likeness(self, other: "Look") -> float:
        """Correlation with another look, -1..1: of the whole, and of what is on the ground if both have one."""
        found = _likeness(self._whole_parts, other._whole_parts)
        if found < ALIKE or self._content_parts is None or other._content_parts is None:
            return found
        return min(found, _likeness(self._content_parts, other._content_parts))

    @cached_property
    def _whole_parts(self) -> "_Parts":
        return _Parts(self.whole)

    @cached_property
    def _content_parts(self) -> "_Parts | None":
        return None if self.content is None else _Parts(self.content)


class _Parts:
    """A picture as it is compared: the whole, and where that is not enough, parts of it; mean 0 in blocks, length 1."""

    def __init__(self, gray: Gray) -> None:
        self._gray = gray.astype(np.float32)

    @cached_property
    def whole(self) -> Floats:
        """(1, P)."""
        return _within_blocks(_SCALES[:1] @ self._gray @ _SCALES[0].T)

    @cached_property
    def parts(self) -> Floats:
        """(V, P)."""
        down = _SCALES @ self._gray
        return _within_blocks(np.stack([down[i] @ _SCALES[j].T for i, j in _CROPS]))


def _likeness(one: _Parts, other: _Parts) -> float:
    straight = float((one.whole @ other.whole.T)[0, 0])
    if straight >= ALIKE or straight < _HOPELESS:
        return straight
    aligned = max((one.whole @ other.parts.T).max(), (one.parts @ other.whole.T).max())
    return max(straight, float(aligned))


def _within_blocks(pixels_VSS: Floats) -> Floats:
    """Pixels (V, 32, 32) without the mean of each block, at unit length: (V, 1024)."""
    n = _COMPARED // _BLOCK
    blocks = pixels_VSS.reshape(-1, n, _BLOCK, n, _BLOCK)
    found = (blocks - blocks.mean((2, 4), keepdims=True)).reshape(len(pixels_VSS), -1)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def _small(gray: Image.Image) -> Gray:
    small = min(gray.size) < SIDE
    return np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC if small else Image.Resampling.BOX))


def _content_box(gray_HW: Gray) -> tuple[int, int, int, int] | None:
    """Box of what stands on an even ground; None if the edge of the picture is not even, or the box is all of it."""
    edge = np.concatenate([gray_HW[0], gray_HW[-1], gray_HW[:, 0], gray_HW[:, -1]]).astype(np.int16)
    ground = int(np.median(edge))
    if np.mean(np.abs(edge - ground) > _GROUND) > 0.02:
        return None
    stands_out = np.abs(gray_HW.astype(np.int16) - ground) > _ON_IT
    rows, columns = np.flatnonzero(stands_out.any(1)), np.flatnonzero(stands_out.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _scaling(start: float, stop: float) -> Floats:
    """Matrix (32, 64) that averages the pixels from `start` to `stop` of 64 to 32."""
    edges = np.linspace(start, stop, _COMPARED + 1)[:, None]
    pixels = np.arange(SIDE)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    weights = np.clip(shared, 0, None)
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


_OFF = 0.05 * SIDE
_SCALES = np.stack(
    [
        _scaling(start, stop)
        for start, stop in ((0, SIDE), (_OFF / 2, SIDE - _OFF / 2), (0, SIDE - _OFF), (_OFF, SIDE), (_OFF, SIDE - _OFF))
    ]
)
_CROPS = [(i, j) for i in (1, 2, 3) for j in (1, 2, 3)] + [(4, 4)]
