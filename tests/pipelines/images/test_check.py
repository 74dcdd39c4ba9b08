"""Everything that a crawl can deliver is accepted, or rejected with the right reason."""

import io
import random
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from pipelines.images.check import Accepted, Limits, examine, foreign_images
from pipelines.images.formats import FORMATS, sniff
from pipelines.images.rejects import Reason, Reject

LIMITS = Limits(min_side=16, max_pixels=250_000, max_bytes=1 << 20)


def picture(width: int = 80, height: int = 60, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Something with both large shapes and texture, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed + 1).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, FORMATS[kind], **options)
    return out.getvalue()


def judge(content: bytes, limits: Limits = LIMITS) -> Accepted | Reject:
    with foreign_images():
        return examine(content, None, limits)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_each_format_is_recognized_by_its_bytes_and_accepted(kind: str, mode: str) -> None:
    content = encode(picture(mode=mode), kind)
    assert sniff(content) == kind
    accepted = judge(content)
    assert isinstance(accepted, Accepted), accepted
    assert (accepted.format, accepted.width, accepted.height) == (kind, 80, 60)
    assert (accepted.declared, accepted.declared_by) == (None, None)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("png", "P"),
        ("png", "RGBA"),
        ("png", "LA"),
        ("png", "1"),
        ("png", "I;16"),
        ("jpg", "CMYK"),
        ("gif", "P"),
        ("webp", "RGBA"),
    ],
)
def test_other_modes_are_accepted(kind: str, mode: str) -> None:
    source = picture().convert("L").convert("I;16") if mode == "I;16" else picture(mode=mode)
    assert isinstance(judge(encode(source, kind)), Accepted)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_in_half_is_never_accepted(kind: str) -> None:
    content = encode(picture(), kind)
    cut = judge(content[: len(content) // 2])
    assert isinstance(cut, Reject)
    if kind not in ("avif", "tif", "jp2"):  # their decoders do not tell truncated files from corrupt ones
        assert cut.reason is Reason.TRUNCATED, cut


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_truncated(progressive: bool) -> None:
    content = encode(picture(), "jpg", progressive=progressive)
    for length in [*range(4, 700, 53), *range(700, len(content) - 2, 211), len(content) - 2]:
        cut = judge(content[:length])
        assert isinstance(cut, Reject) and cut.reason is Reason.TRUNCATED, (length, cut)


def test_flipped_bytes_never_raise_and_never_warn() -> None:
    random.seed(0)
    for kind in FORMATS:
        content = encode(picture(), kind)
        for _ in range(40):
            damaged = bytearray(content)
            for _ in range(8):
                damaged[random.randrange(len(damaged))] = random.randrange(256)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert isinstance(judge(bytes(damaged)), Accepted | Reject)


def test_corrupt_data_is_not_called_truncated() -> None:
    content = bytearray(encode(picture(), "png"))
    start = content.index(b"IDAT") + 8
    content[start : start + 40] = bytes(40)
    reject = judge(bytes(content))
    assert isinstance(reject, Reject) and reject.reason is Reason.CORRUPT and reject.detail.startswith("png: ")


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", Reason.EMPTY, "0 bytes"),
        (b"<!doctype html><title>403</title>", Reason.NOT_AN_IMAGE, "HTML"),
        (b'\n {"error": "gone"}', Reason.NOT_AN_IMAGE, "JSON"),
        (b"%PDF-1.7", Reason.NOT_AN_IMAGE, "PDF"),
        (b"PK\x03\x04 and so on", Reason.NOT_AN_IMAGE, "a compressed archive"),
        (b"not found", Reason.NOT_AN_IMAGE, "text"),
        (bytes(100), Reason.NOT_AN_IMAGE, "unknown bytes"),
        (b"BM, or not to be, that is the question", Reason.NOT_AN_IMAGE, "text"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00isommp42", Reason.NOT_AN_IMAGE, "unknown bytes"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", Reason.UNSUPPORTED_FORMAT, "svg"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", Reason.UNSUPPORTED_FORMAT, "heic"),
        (b"8BPS" + bytes(40), Reason.UNSUPPORTED_FORMAT, "psd"),
        (b"\xff\xd8\xff", Reason.TRUNCATED, None),
        (b"\x89PNG\r\n\x1a\n", Reason.TRUNCATED, None),
        (bytes((1 << 20) + 1), Reason.TOO_MANY_BYTES, "1048577 bytes, over the limit of 1048576"),
    ],
)
def test_what_is_not_an_image_is_described(content: bytes, reason: Reason, detail: str | None) -> None:
    reject = judge(content)
    assert isinstance(reject, Reject) and reject.reason is reason
    assert detail is None or reject.detail == detail


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_limits_are_read_from_the_header(kind: str) -> None:
    assert isinstance(judge(encode(picture(16, 400), kind)), Accepted)
    small, large = judge(encode(picture(15, 400), kind)), judge(encode(picture(501, 500), kind))
    assert isinstance(small, Reject) and small.reason is Reason.TOO_SMALL and "15x400" in small.detail
    assert isinstance(large, Reject) and large.reason is Reason.TOO_MANY_PIXELS


def test_a_decompression_bomb_is_never_decoded() -> None:
    content = bytearray(encode(picture(), "png"))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", __import__("zlib").crc32(content[12:29]))
    reject = judge(bytes(content), Limits(min_side=16, max_pixels=89_478_485, max_bytes=1 << 20))
    assert isinstance(reject, Reject) and reject.reason is Reason.TOO_MANY_PIXELS


def test_pillow_is_left_as_it_was() -> None:
    before, filters = Image.MAX_IMAGE_PIXELS, warnings.filters[:]
    judge(encode(picture(), "jpg"))
    assert before == Image.MAX_IMAGE_PIXELS and warnings.filters == filters


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}, {"restart_marker_rows": 1}]
)
@pytest.mark.parametrize("size", [(16, 16), (33, 31), (64, 64), (224, 224), (513, 300), (77, 1000)])
def test_a_plain_jpeg_is_read_as_pillow_reads_it(options: dict[str, object], size: tuple[int, int]) -> None:
    plain = encode(picture(*size), "jpg", **options)
    comment = plain[:2] + b"\xff\xfe\x00\x07hello" + plain[2:]
    general = plain[:2] + b"\xff\xe1\x00\x07hello" + plain[2:]  # might be EXIF: goes by Image.open
    assert judge(plain) == judge(comment) == judge(general)
    assert isinstance(judge(plain), Accepted)
