"""Every part of curate sees the same picture, and it is the one that a browser shows."""

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from pipelines.images import plain_jpeg, thumbnails
from pipelines.images.appearance import as_seen, pixels_as_seen, size_as_seen, with_image
from pipelines.images.check import Accepted, Limits, examine, foreign_images
from pipelines.images.photo import PhotoDecoder
from pipelines.images.rejects import Reason, Reject
from pipelines.images.views import Decoder
from pipelines.report.properties import look

LIMITS = Limits(min_side=16, max_pixels=1 << 30, max_bytes=1 << 24)
BACK = {  # what a camera that is held otherwise stores
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
NO_EXIF = (bytes(20), b"<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?>", b"ASCII\0\0\0Steps: 20", b'{"Make": "x"}')


def scene(width: int = 90, height: int = 60, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(picture: Image.Image, codec: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, codec, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, added: bytes) -> bytes:
    return png[:33] + added + png[33:]


def seen(content: bytes) -> npt.NDArray[np.uint8]:
    with foreign_images():
        return np.asarray(as_seen(content))


def accepted(content: bytes) -> Accepted:
    with foreign_images():
        found = examine(content, None, LIMITS)
    assert isinstance(found, Accepted), found
    return found


def off(content: bytes, expected: Image.Image) -> float:
    """The largest difference of a level, of 255, in the picture."""
    return float(np.abs(seen(content).astype(int) - np.asarray(expected.convert("RGB"), dtype=int)).max())


def tiff_of_12_bits(gray_HW: npt.NDArray[np.uint8]) -> bytes:
    height, width = gray_HW.shape
    first, second = gray_HW.reshape(-1, 2).astype(int).T << 4
    strip = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(strip)}
    ifd = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + ifd + bytes(4)


GRAY = scene(mode="L")
LEVELS = np.asarray(GRAY).astype(np.uint16) * 257
DEEP = {
    "16 bits": saved(Image.fromarray(LEVELS)),
    "16 bits, TIFF": saved(Image.fromarray(LEVELS), "TIFF"),
    "16 bits, TIFF, compressed": saved(Image.fromarray(LEVELS), "TIFF", compression="tiff_lzw"),
    "16 bits, TIFF, big-endian": saved(Image.frombytes("I;16B", GRAY.size, LEVELS.astype(">u2").tobytes()), "TIFF"),
    "16 bits, JPEG 2000": saved(Image.fromarray(LEVELS), "JPEG2000"),
    "12 bits": tiff_of_12_bits(np.asarray(GRAY)),
    "32 bits": saved(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"),
    "8 in 32 bits": saved(Image.fromarray(np.asarray(GRAY).astype(np.int32)), "TIFF"),
    "floats up to 1": saved(Image.fromarray(np.asarray(GRAY).astype(np.float32) / 255), "TIFF"),
    "floats up to 255": saved(Image.fromarray(np.asarray(GRAY).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_gray_is_the_same_picture_in_8_bits(kind: str) -> None:
    assert off(DEEP[kind], GRAY) == 0
    assert accepted(DEEP[kind]).phash == accepted(saved(GRAY)).phash


def test_floats_of_any_range_are_stretched_and_what_is_no_number_is_black() -> None:
    levels = np.linspace(-3, 5, 64 * 64, dtype=np.float32).reshape(64, 64)
    levels[0, 0], levels[0, 1], levels[0, 2] = np.nan, np.inf, -np.inf
    pixels = seen(saved(Image.fromarray(levels), "TIFF"))
    assert pixels.min() == 0 and pixels.max() == 255 and len(np.unique(pixels)) > 200
    assert (seen(saved(Image.fromarray(np.zeros((32, 32), np.float32)), "TIFF")) == 0).all()


@pytest.mark.parametrize("codec", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white_whatever_color_they_hide(codec: str, mode: str) -> None:
    if codec == "WEBP" and mode == "LA":
        return  # WebP stores it as RGBA
    mask = Image.new("L", (90, 60), 0)
    ImageDraw.Draw(mask).ellipse((20, 10, 70, 50), fill=255)
    cutout = scene(mode="RGB" if mode == "RGBA" else "L")
    expected = Image.composite(cutout, Image.new(cutout.mode, cutout.size, "white"), mask)
    cutout.putalpha(mask)
    options = {"lossless": True, "exact": True} if codec == "WEBP" else {}
    assert off(saved(cutout, codec, **options), expected) == 0
    assert accepted(saved(cutout, codec, **options)).phash == accepted(saved(expected)).phash


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    assert (seen(saved(Image.new("RGBA", (40, 40), (0, 100, 200, 128)))) == [127, 177, 227]).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_color_that_a_png_calls_transparent_is_white(mode: str) -> None:
    drawn = Image.new("L", (60, 60), 0)
    ImageDraw.Draw(drawn).rectangle((20, 20, 40, 40), fill=255 if mode == "1" else 120)
    key = (0, 0, 0) if mode == "RGB" else 0
    content = saved(drawn.convert(mode), transparency=key)
    assert seen(content)[0, 0].tolist() == [255] * 3
    assert mode == "1" or seen(content)[30, 30].tolist() == [120] * 3


def test_the_palette_of_a_png_may_be_transparent_by_degrees_and_pillow_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = seen(saved(scene(mode="P"), transparency=bytes([0, 128] * 128)))
    assert pixels.mean() > np.asarray(scene()).mean() + 40


def test_an_opaque_image_with_alpha_is_bit_for_bit_the_one_without() -> None:
    plain, opaque = saved(scene()), saved(scene(mode="RGBA"))
    assert off(opaque, scene()) == 0 and accepted(opaque).phash == accepted(plain).phash


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr"])
def test_other_kinds_of_color_are_what_pillow_makes_of_them(mode: str) -> None:
    picture = scene(mode=mode)
    codec = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    assert off(saved(picture, codec), picture.convert("RGB")) == 0


def test_lab_is_shown_in_its_colors() -> None:
    lab = Image.frombytes("LAB", (40, 40), bytes([136, 81, 67]) * 1600)  # sRGB's red: L* 53, a* 80, b* 67
    red, green, blue = seen(saved(lab, "TIFF"))[20, 20].tolist()
    assert red > 240 and green < 25 and blue < 25


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", BACK)
def test_exif_turns_the_picture_its_size_and_its_hash(codec: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if codec == "WEBP" else {"quality": 95} if codec == "JPEG" else {}
    upright, stored = scene(403, 260), scene(403, 260).transpose(BACK[turn])
    found = accepted(saved(stored, codec, exif=exif.tobytes(), **options))
    expected = accepted(saved(upright, codec, **options))
    assert (found.width, found.height) == (403, 260)
    assert (found.phash ^ expected.phash).bit_count() <= 2
    assert off(saved(stored, codec, exif=exif.tobytes(), **options), upright) <= (30 if codec == "JPEG" else 0)
    with foreign_images():
        assert with_image(saved(stored, codec, exif=exif.tobytes()), size_as_seen) == (403, 260)


@pytest.mark.parametrize("codec", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", NO_EXIF)
def test_what_is_no_exif_turns_nothing_and_ends_nothing(codec: str, exif: bytes) -> None:
    content = saved(scene(), codec, exif=exif)
    assert (accepted(content).width, accepted(content).height) == (90, 60)
    with foreign_images():
        assert thumbnails.encode(content, thumbnails.CONTACT_SHEET).content
        assert look(content)["greyness"] == "color"


def with_a_bad_crc(text: bytes) -> bytes:
    return text[:-4] + bytes(4)


LONG = json.dumps([{"node": i, "widget": "x" * 20} for i in range(40_000)]).encode()
XMP = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x:xmpmeta>" + b"<rdf:li>history</rdf:li>" * 60_000)
SOUND = {
    "profile of 1.6 MB": chunk(b"iCCP", b"CMYK\0\0" + zlib.compress(bytes(1_600_000))),
    "XMP of 1.4 MB": chunk(b"iTXt", XMP),
    "profile of 40 MB": chunk(b"iCCP", b"CMYK\0\0" + zlib.compress(bytes(40 << 20))),
    "text of 40 MB": chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(40 << 20))),
    "bad checksum of a text": with_a_bad_crc(chunk(b"tEXt", b"Title\0x")),
}


@pytest.mark.parametrize("kind", SOUND)
def test_metadata_of_any_size_hide_no_picture(kind: str) -> None:
    content = with_chunk(saved(scene()), SOUND[kind])
    assert off(content, scene()) == 0
    assert accepted(content).phash == accepted(saved(scene())).phash


def test_a_long_workflow_still_declares_its_origin() -> None:
    content = with_chunk(saved(scene()), chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG)))
    assert accepted(content)[4:] == ("synthetic", "png:workflow")


def test_exif_counts_where_a_text_is_left_out() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = with_chunk(saved(scene(), exif=exif.tobytes()), SOUND["bad checksum of a text"])
    assert seen(content).shape == (90, 60, 3)


def test_damaged_pixels_stay_damaged_whatever_text_is_beside_them() -> None:
    content = bytearray(with_chunk(saved(scene()), SOUND["bad checksum of a text"]))
    start = content.index(b"IDAT") + 8
    content[start : start + 40] = bytes(40)
    with foreign_images():
        found = examine(bytes(content), None, LIMITS)
    assert isinstance(found, Reject) and found.reason is Reason.CORRUPT


@pytest.mark.parametrize("make", [lambda: DEEP["16 bits"], lambda: saved(scene(mode="P"), transparency=3)])
def test_networks_thumbnails_and_report_see_the_same(make: Callable[[], bytes]) -> None:
    content = make()
    expected = seen(content)
    with foreign_images():
        native = Decoder(60, 60).decode("key", content)[0]
        photo = PhotoDecoder(60, 1).decode("key", content).thumbnail
        small = thumbnails.thumbnail(content, 90)
    assert (np.asarray(small) == expected).all()
    assert (native == photo).all() and (native == expected[:, 15:75].transpose(2, 0, 1)).all()


@pytest.mark.slow
def test_an_image_beyond_pillows_limits_is_decoded_without_a_warning() -> None:
    content = saved(Image.new("1", (13_400, 13_400), 1))  # twice as many pixels as Pillow warns of: it would refuse it
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as threads:
        warnings.simplefilter("error")
        views = Decoder(32, 32).batch(["key"], [content], threads)
    assert views.images.shape == (1, 3, 32, 32) and bool((views.images == 255).all())


def test_threads_set_pillow_up_side_by_side_and_leave_it_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, list(warnings.filters)
    together = Barrier(2)

    def first() -> None:
        with foreign_images():
            together.wait()  # both are in
            together.wait()  # the other has left
            assert Image.MAX_IMAGE_PIXELS is None

    def second() -> None:
        with foreign_images():
            together.wait()
        together.wait()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(first), threads.submit(second)]:
            done.result()
    assert (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, list(warnings.filters)) == before


@pytest.mark.parametrize(
    "options",
    [
        {}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 20}, {"quality": 100},
        {"keep_rgb": True}, {"restart_marker_rows": 1}, {"icc_profile": b"not parsed"}, {"comment": b"hello"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [(16, 16), (33, 31), (224, 224), (301, 203)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_plain_jpeg_has_the_pixels_that_pillow_gives(
    options: dict[str, object], size: tuple[int, int], mode: str
) -> None:
    grain = np.random.default_rng(1).integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(np.asarray(scene(*size)) // 2 + grain).convert(mode)
    content = saved(picture, "JPEG", **options)
    assert plain_jpeg.size(content) == size
    with foreign_images():
        np.testing.assert_array_equal(pixels_as_seen(content), np.asarray(as_seen(content)))


def test_other_jpegs_go_by_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, cmyk = saved(scene(), "JPEG", exif=exif.tobytes()), saved(scene().convert("CMYK"), "JPEG")
    plain = saved(scene(), "JPEG")
    for content in (turned, cmyk, saved(scene()), plain[:40], plain[: len(plain) // 2], b"", b"\xff\xd8\xff"):
        assert plain_jpeg.rgb(content) is None
    with foreign_images():
        assert pixels_as_seen(turned).shape == (90, 60, 3)
        np.testing.assert_array_equal(pixels_as_seen(cmyk), np.asarray(as_seen(cmyk)))
