"""Images made to do harm: bombs, false sizes, files of two formats at once, endless metadata."""

import io
import struct
import tracemalloc
import zipfile
import zlib

import pytest
from PIL import Image

from pipelines.images.check import Accepted, Limits, examine, foreign_images
from pipelines.images.formats import FORMATS
from pipelines.images.rejects import Reason, Reject
from pipelines.images.views import Decoder

LIMITS = Limits(min_side=16, max_pixels=89_478_485, max_bytes=1 << 28)


def encode(kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, FORMATS[kind], **options)
    return out.getvalue()


def judge(content: bytes, metadata: bytes | None = None) -> Accepted | Reject:
    with foreign_images():
        return examine(content, metadata, LIMITS)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: tuple[int, int] = (40, 30), data: bytes = zlib.compress(bytes(41 * 30))) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(**changes: int) -> bytes:
    """A gray TIFF of 40x30 in one strip, with tags changed or added by number (`t256=1`)."""
    tags = {256: 40, 257: 30, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 30, 279: 1200}
    tags |= {int(tag[1:]): value for tag, value in changes.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 1208) + bytes(1200) + struct.pack("<H", len(tags)) + entries + bytes(4)


def patch(content: bytes, at: int, replacement: bytes) -> bytes:
    return content[:at] + replacement + content[at + len(replacement) :]


def after(content: bytes, marker: bytes, offset: int) -> int:
    return content.index(marker) + offset


# Size


def giants() -> dict[str, bytes]:
    """Small files whose headers say 100,000 x 100,000, or the largest size of the format."""
    jpg, gif, bmp, avif, jp2 = (encode(kind, "L") for kind in ("jpg", "gif", "bmp", "avif", "jp2"))
    codestream = patch(jp2, after(jp2, b"\xff\x51", 6), struct.pack(">II", 100_000, 100_000))
    webp = encode("webp", "RGBA", exif=b"Exif\0\0II*\0")
    return {
        "jpg": patch(jpg, after(jpg, b"\xff\xc0", 5), struct.pack(">HH", 65_500, 65_500)),
        "png": png(size=(100_000, 100_000)),
        "webp": patch(webp, after(webp, b"VP8X", 12), b"\xff\xff\xff" * 2),
        "gif": patch(gif, 6, b"\xff" * 4),
        "gif-frame": patch(gif, after(gif, b",", 5), b"\xff" * 4),
        "bmp": patch(bmp, 18, struct.pack("<ii", 100_000, 100_000)),
        "tif": tiff(t256=100_000, t257=100_000),
        "tif-tile": tiff(t322=30_000, t323=30_000, t324=8, t325=1200, t259=8),
        "avif": patch(avif, after(avif, b"ispe", 8), struct.pack(">II", 100_000, 100_000)),
        "jp2": patch(codestream, after(jp2, b"ihdr", 4), struct.pack(">II", 100_000, 100_000)),
    }


@pytest.mark.parametrize("kind", giants())
def test_a_header_that_says_100_000_pixels_a_side_is_believed_and_rejected(kind: str) -> None:
    reject = judge(giants()[kind])
    # The decoders of these two compare sizes within the file, and find the contradiction first.
    expected = Reason.CORRUPT if kind in ("webp", "avif") else Reason.TOO_MANY_PIXELS
    assert isinstance(reject, Reject) and reject.reason is expected, reject


@pytest.mark.slow
def test_what_inflates_to_more_than_the_header_says_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    assert isinstance(judge(png(data=bomb)), Accepted)  # as in a browser: the first 30 lines are complete
    for text in (b"zTXt", b"iTXt", b"iCCP"):
        head = b"key\0\1\0\0\0" if text == b"iTXt" else b"key\0\0"
        assert memory_to_judge(png(chunk(text, head + bomb))) < 40 << 20
    many = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 20))) * 200
    assert memory_to_judge(png(many)) < 140 << 20


def memory_to_judge(content: bytes) -> int:
    """The most memory, in bytes, that Python takes to accept an image without the metadata that it cannot read."""
    tracemalloc.start()
    try:
        assert isinstance(judge(content), Accepted)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Metadata


@pytest.mark.parametrize(
    "content",
    [
        encode("jpg", icc_profile=b"no profile" * 9000),
        png(chunk(b"iCCP", b"sRGB\0\0 no stream of zlib")),
        encode("webp", icc_profile=b"no profile"),
        encode("tif", icc_profile=b"no profile"),
        png(chunk(b"eXIf", b"II*\0" + b"\xff" * 1000)),
        png(chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\1\xff\xff\0\0\x87\x69\0\4\0\0\0\1\0\0\0\x08")),
        encode("jpg", exif=b"Exif\0\0" + bytes(200)),
        encode("jpg")[:2] + (b"\xff\xe1\xff\xffExif\0\0II*\0" + bytes(65523)) * 20 + encode("jpg")[2:],
        encode("webp", xmp=b"<CreatorTool>" * 400_000),
        encode("gif", "P", comment=b"Steps: 1 " * 100_000),
        encode("jpg", comment=b"Steps: 1 " * 7000),
        png(chunk(b"prVt", b"") * 20_000),
    ],
    ids=["icc-jpg", "icc-png", "icc-webp", "icc-tif", "exif-ff", "exif-loop", "exif-zeros", "exif-20", "xmp",
         "gif-comment", "jpg-comment", "chunks"],
)  # fmt: skip
def test_broken_or_absurd_metadata_cost_no_image_and_no_time(content: bytes) -> None:
    found = judge(content)
    assert isinstance(found, Accepted) and found.declared is None
    Decoder(16, 16).decode("key", content)


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"exif": "\xe9\xff"}',
        '{"exif": "ü"}'.encode("utf-16"),
        b'{"exif": ' + b"[" * 100_000,
        b'{"exif": "' + b"[" * 100_000 + b'"}',
        b'{"exif": ' + b"9" * 10_000 + b"}",
        b'["exif"]',
        b'"exif"',
        b'{"exif": null}',
    ],
)
def test_json_beside_an_image_may_be_anything(metadata: bytes) -> None:
    for content in (encode("jpg"), encode("png")):
        assert judge(content, metadata) == judge(content)


def test_declarations_are_still_found_behind_others() -> None:
    text = b"Steps: a, Steps: 20, Size: 1x1, " + b"x" * 1000 + b", CFG scale: 7"
    for content in (encode("jpg", comment=text), encode("gif", "P", comment=text)):
        found = judge(content)
        assert isinstance(found, Accepted) and (found.declared, found.declared_by) == ("synthetic", "comment")


# Two things at once


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("payload.txt", "hello")
    return out.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tail", [archive(), b"<script>alert(1)</script>", encode("png")], ids=["zip", "html", "png"])
def test_what_follows_an_image_changes_nothing_about_it(kind: str, tail: bytes) -> None:
    alone, both = judge(encode(kind)), judge(encode(kind) + tail)
    # AVIF's decoder refuses a malformed box.
    assert both == alone or (kind == "avif" and isinstance(both, Reject))


@pytest.mark.parametrize(
    "head", [b"%PDF-1.7\n", archive(), b"<html>", b"#!/bin/sh\n"], ids=["pdf", "zip", "html", "sh"]
)
def test_an_image_in_something_else_is_no_image(head: bytes) -> None:
    reject = judge(head + encode("jpg"))
    assert isinstance(reject, Reject) and reject.reason is Reason.NOT_AN_IMAGE


def test_a_script_that_calls_itself_a_gif_is_no_image() -> None:
    assert isinstance(judge(b"GIF89a=1;/*" + bytes(40) + b"*/alert(1)"), Reject)


# Frames and orientations


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif", "avif"])
def test_of_several_frames_the_first_is_used(kind: str) -> None:
    first, second = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")
    out = io.BytesIO()
    first.save(out, FORMATS[kind], save_all=True, append_images=[second] * 3)
    found = judge(out.getvalue())
    assert isinstance(found, Accepted) and (found.width, found.height) == (40, 30)
    tile = Decoder(16, 16).decode_tile("key", out.getvalue())
    assert tile[0].mean() > 200 and tile[2].mean() < 50


@pytest.mark.parametrize("orientation", [*range(10), 0xFFFF])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_any_exif_orientation_is_accepted_and_decodes(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(kind, exif=exif)
    assert isinstance(judge(content), Accepted)
    image, _ = Decoder(16, 16).decode("key", content)
    assert image.shape == (3, 16, 16)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about these tags
def test_an_image_whose_exif_cannot_be_applied_is_still_an_image() -> None:
    """Ingest keeps images that merely have broken EXIF, so training must be able to read them."""
    whole = encode("tif", exif=_rotated())
    for at in range(whole.index(b"\x12\x01"), len(whole), 7):
        content = patch(whole, at, b"\xff" * min(8, len(whole) - at))
        if isinstance(judge(content), Accepted):
            Decoder(16, 16).decode("key", content)


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    return exif


def test_details_are_the_same_words_every_time() -> None:
    for content in (tiff(t258=60_000), png(chunk(b"IHDR", b"")), encode("avif")[:300]):
        first, again = judge(content), judge(content)
        assert first == again and isinstance(first, Reject) and "0x" not in first.detail
