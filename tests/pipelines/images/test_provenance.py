"""Declarations as cameras, generators and editors write them, here by Pillow, are found in every format."""

import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from pipelines.images.check import Accepted, Limits, examine, foreign_images

A1111 = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
COMFYUI = '{"3": {"class_type": "KSampler"}}'
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" {}/></rdf:RDF></x:xmpmeta>'
)
SOURCE_TYPE = 'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{}"'
C2PA_STORE = struct.pack(">I4s", 37, b"jumd") + bytes.fromhex("6332706100110010800000aa00389b71") + b"\x03c2pa\0"

Found = tuple[str | None, str | None]


def save(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(out, kind, **options)
    return out.getvalue()


def found(content: bytes, metadata: bytes | None = None) -> Found:
    with foreign_images():
        accepted = examine(content, metadata, Limits(min_side=1, max_pixels=1 << 20, max_bytes=1 << 20))
    assert isinstance(accepted, Accepted), accepted
    return accepted.declared, accepted.declared_by


def exif(tags: dict[int, str], comment: bytes | None = None) -> Image.Exif:
    data = Image.Exif()
    data.update(tags)
    if comment is not None:
        data.get_ifd(0x8769)[0x9286] = comment
    return data


def chunks(**texts: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return info


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_says_camera_or_generator_in_every_format(kind: str) -> None:
    assert found(save(kind)) == (None, None)
    assert found(save(kind, exif=exif({0x010F: "Canon", 0x0110: "EOS 5D"}))) == ("camera", "exif:Make")
    assert found(save(kind, exif=exif({0x0110: "Pixel 8"}))) == ("camera", "exif:Model")
    assert found(save(kind, exif=exif({0x0131: "NovelAI V3"}))) == ("synthetic", "software:NovelAI")
    assert found(save(kind, exif=exif({0x0131: "Adobe Photoshop 25.0"}))) == (None, None)


@pytest.mark.parametrize(
    "code", [b"ASCII\0\0\0" + A1111.encode(), b"UNICODE\0" + A1111.encode("utf-16-be"), A1111.encode()]
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_generation_parameters_in_a_user_comment_win_over_a_camera(kind: str, code: bytes) -> None:
    content = save(kind, exif=exif({0x010F: "Canon"}, code))
    assert found(content) == ("synthetic", "exif:UserComment")


def test_an_ordinary_user_comment_declares_nothing() -> None:
    assert found(save("JPEG", exif=exif({}, b"ASCII\0\0\0Three steps: left, right, left"))) == (None, None)


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_generation_parameters_in_a_comment(kind: str) -> None:
    assert found(save(kind, comment=A1111)) == ("synthetic", "comment")
    assert found(save(kind, comment="CREATOR: gd-jpeg v1.0")) == (None, None)


def test_a_plain_jpeg_with_a_comment_in_utf16_is_read_to_the_end() -> None:
    assert found(save("JPEG", comment=A1111.encode("utf-16-le"))) == ("synthetic", "comment")


def test_comfyui_hides_its_graph_in_camera_tags() -> None:
    content = save("WEBP", exif=exif({0x010F: f"workflow:{COMFYUI}", 0x0110: f"prompt:{COMFYUI}"}))
    assert found(content) == ("synthetic", "exif:Make")


def test_midjourney_signs_the_description() -> None:
    text = "a cat --v 5 Job ID: 01234567-89ab-cdef-0123-456789abcdef"
    assert found(save("JPEG", exif=exif({0x010E: text}))) == ("synthetic", "exif:ImageDescription")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"parameters": A1111}, ("synthetic", "png:parameters")),
        ({"prompt": COMFYUI, "workflow": "{}"}, ("synthetic", "png:prompt")),
        ({"workflow": "{}"}, ("synthetic", "png:workflow")),
        ({"Software": "NovelAI", "Comment": "{}"}, ("synthetic", "software:NovelAI")),
        ({"Source": "Stable Diffusion XL 7BCCAA2C"}, ("synthetic", "software:Stable Diffusion")),
        ({"Software": "GIMP 2.10", "Comment": "Created with GIMP"}, (None, None)),
    ],
)
def test_png_text_chunks(texts: dict[str, str], expected: Found) -> None:
    assert found(save("PNG", pnginfo=chunks(**texts))) == expected


def test_a_text_chunk_after_the_pixels_counts() -> None:
    content = save("PNG")
    text = b"tEXtparameters\0" + A1111.encode()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    end = content.index(b"IEND") - 4
    assert found(content[:end] + chunk + content[end:]) == ("synthetic", "png:parameters")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "AVIF", "PNG"])
@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        (SOURCE_TYPE.format("trainedAlgorithmicMedia"), ("synthetic", "xmp:DigitalSourceType")),
        (SOURCE_TYPE.format("digitalCapture"), ("camera", "xmp:DigitalSourceType")),
        ('xmp:CreatorTool="Adobe Firefly 2"', ("synthetic", "software:Adobe Firefly")),
        ('xmp:CreatorTool="Adobe Lightroom"', (None, None)),
    ],
)
def test_xmp(kind: str, attribute: str, expected: Found) -> None:
    packet = XMP.format(attribute)
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        content = save(kind, pnginfo=info)
    elif kind == "TIFF":
        content = save(kind, tiffinfo={700: packet.encode()})
    else:
        content = save(kind, xmp=packet.encode())
    assert found(content) == expected


SYNTHETIC_TERMS = ("trainedAlgorithmicMedia", "algorithmicMedia", "compositeSynthetic")
CAMERA_TERMS = ("digitalCapture", "computationalCapture", "negativeFilm", "positiveFilm", "print")
OTHER_TERMS = (
    "compositeWithTrainedAlgorithmicMedia", "algorithmicallyEnhanced", "screenCapture", "virtualRecording",
    "digitalCreation", "humanEdits", "trainedAlgorithmicMediaOfTomorrow",
)  # fmt: skip


def meaning(term: str) -> str | None:
    return "synthetic" if term in SYNTHETIC_TERMS else "camera" if term in CAMERA_TERMS else None


@pytest.mark.parametrize("term", [*SYNTHETIC_TERMS, *CAMERA_TERMS, *OTHER_TERMS])
def test_every_source_type_in_xmp(term: str) -> None:
    expected = (meaning(term), "xmp:DigitalSourceType") if meaning(term) else (None, None)
    assert found(save("JPEG", xmp=XMP.format(SOURCE_TYPE.format(term)).encode())) == expected


@pytest.mark.parametrize(
    "element",
    [
        "<Iptc4xmpExt:DigitalSourceType>{}</Iptc4xmpExt:DigitalSourceType>",
        '<Iptc4xmpExt:DigitalSourceType rdf:resource="{}"/>',
        "<Iptc4xmpExt:DigitalSourceType>\n  {}\n</Iptc4xmpExt:DigitalSourceType>",
    ],
)
def test_xmp_may_hold_the_source_type_as_an_element(element: str) -> None:
    address = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"
    packet = f"<x:xmpmeta><rdf:Description>{element.format(address)}</rdf:Description></x:xmpmeta>"
    assert found(save("JPEG", xmp=packet.encode())) == ("synthetic", "xmp:DigitalSourceType")


def test_a_source_type_elsewhere_in_xmp_is_no_declaration() -> None:
    text = SOURCE_TYPE.format("digitalCreation") + ' dc:description="not trainedAlgorithmicMedia at all"'
    assert found(save("JPEG", xmp=XMP.format(text).encode())) == (None, None)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"Image Make": "Canon", "Image Model": "EOS"}, ("camera", "json:exif Image Make")),
        ({"Image Software": "NovelAI"}, ("synthetic", "software:NovelAI")),
        ({"Image Make": "Canon", "EXIF UserComment": A1111}, ("synthetic", "json:exif EXIF UserComment")),
        ({"Image Orientation": "Horizontal"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_the_exif_that_img2dataset_keeps_as_json(tags: dict[str, str], expected: Found) -> None:
    metadata = json.dumps({"key": "000000001", "exif": json.dumps(tags)}).encode()
    assert found(save("JPEG"), metadata) == expected
    assert found(save("PNG"), metadata) == expected


@pytest.mark.parametrize("metadata", [b"", b"{", b'{"exif": 7}', b'{"exif": "{"}', b'{"exif": "[1]"}', b'\xff"exif"'])
def test_other_json_is_no_evidence(metadata: bytes) -> None:
    assert found(save("JPEG"), metadata) == (None, None)


def test_broken_exif_costs_the_declaration_not_the_image() -> None:
    broken = save("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert found(broken) == (None, None)


FIXTURE = Path(__file__).parents[4] / "shared" / "fixtures" / "img2dataset-default"


@pytest.mark.skipif(not FIXTURE.exists(), reason="the img2dataset fixtures are not beside this checkout")
def test_real_img2dataset_json_is_understood() -> None:
    from pipelines.storage.shards import read_samples

    declared = set[Found]()
    for shard in sorted(FIXTURE.glob("*.tar")):
        for _, sample in read_samples(shard):
            if "jpg" in sample:
                declared.add(found(sample["jpg"], sample["json"]))
    assert any(what for what, _ in declared)
