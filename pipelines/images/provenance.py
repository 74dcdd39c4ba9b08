"""Reads what an image file declares about its own origin: a camera, a generator, or nothing.

Declarations are kept apart from scores: they can be forged or stripped, and most images on the web have none. A
declaration of "synthetic" wins over one of "camera", because generators copy camera tags but cameras copy no prompts.

Source types are IPTC's terms (https://cv.iptc.org/newscodes/digitalsourcetype/), in XMP or in C2PA actions. A picture
that was merely enhanced, retouched or composed with a model's help declares neither.

C2PA manifests are read by the extra `c2pa`. Only the actions of the active manifest count: those of its ingredients say
how a part of the picture was made, or an earlier version of it. Nothing is fetched, neither manifests that are stored
elsewhere nor revocation lists, and the signer is not looked up in any list of trusted ones. So "c2pa" means that the
file has not changed since somebody signed it. Without the extra a manifest declares nothing, because its bytes alone do
not tell the picture from its ingredients; `by` then says that it was not read.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from PIL import Image


class Declared(NamedTuple):
    """`what` is "synthetic", "camera" or None; `by` names the field that declares it, such as "png:parameters".

    A C2PA manifest is "c2pa", or "c2pa (signature invalid)" if the file was changed after it was signed or the signer's
    certificate had expired. One that declares neither is on record as well, with `what` None, and so is one that is
    "c2pa (unreadable)", or "c2pa (not read)" without the extra.
    """

    what: str | None = None
    by: str | None = None


NOTHING = Declared()
NOT_READ = "c2pa (not read)"  # without the extra

_PROMPT_CHUNKS = (  # PNG text chunks that generators leave
    "parameters",  # AUTOMATIC1111 and its descendants
    "prompt",  # ComfyUI
    "workflow",
    "invokeai_metadata",
    "sd-metadata",
    "Dream",
    "fooocus_scheme",
    "generation_data",
)
_GENERATOR = re.compile(
    r"stable.?diffusion|midjourney|\bdall.?e\b|comfyui|invokeai|novelai|automatic1111|adobe firefly|fooocus"
    r"|dreamstudio|leonardo\.ai|ideogram|google imagen|made with google ai|bing image creator",
    re.IGNORECASE,
)
_STEPS = re.compile(r"\bSteps: \d+")
_AFTER_STEPS = re.compile(r"\b(?:Sampler|CFG scale|Seed): ")
_MIDJOURNEY_JOB = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-")
_CREATOR_TOOL = re.compile(r"CreatorTool(?:=[\"']|>)([^\"'<]*)")
_COMFYUI_TAG = re.compile(r"(?:workflow|prompt):\s*\{")
# All others are neither: compositeWithTrainedAlgorithmicMedia, algorithmicallyEnhanced, screenCapture, humanEdits, ...
_SOURCE_TYPES = {
    "trainedAlgorithmicMedia": "synthetic",
    "algorithmicMedia": "synthetic",
    "compositeSynthetic": "synthetic",
    "digitalCapture": "camera",
    "computationalCapture": "camera",
    "negativeFilm": "camera",
    "positiveFilm": "camera",
    "print": "camera",
}
_XMP_SOURCE_TYPE = re.compile(r"DigitalSourceType\s*(?:=|>|rdf:resource\s*=)[\s\"']*([^\s\"'<]+)")
_C2PA_STORE = bytes.fromhex("6332706100110010800000aa00389b71")  # JUMBF type of a C2PA manifest store, in any container
_C2PA_SOUND = ("Valid", "Trusted")
_C2PA_SETTINGS = {"verify": {"verify_trust": False, "ocsp_fetch": False, "remote_manifest_fetch": False}}

_MAX_TEXT = 1 << 20
_JPEG_DECLARING = (0xE1, 0xEB)  # APP1: EXIF and XMP; APP11: C2PA
_JPEG_COMMENT = 0xFE
_EXIF_DESCRIPTION, _EXIF_MAKE, _EXIF_MODEL, _EXIF_SOFTWARE = 0x010E, 0x010F, 0x0110, 0x0131
_EXIF_IFD, _EXIF_USER_COMMENT = 0x8769, 0x9286


def declared(image: Image.Image | None, content: bytes, metadata: bytes | None) -> Declared:
    """Declaration in a loaded image, its file and its img2dataset JSON; pass `image` as None if the file has none.

    May raise whatever Pillow raises on broken EXIF.
    """
    camera = NOTHING
    for found in _evidence(image, content, metadata):
        if found.what == "synthetic":
            return found
        # A camera counts more than a bare C2PA manifest; of each kind, the first counts.
        if camera.what is None and (found.what or not camera.by):
            camera = found
    return camera


def cannot_declare(marker: int, segment: bytes) -> bool:
    """Whether `declared` can find nothing in this APP or COM segment of a JPEG, so that it need not be parsed."""
    if marker in _JPEG_DECLARING:
        return False
    return marker != _JPEG_COMMENT or b"Steps: " not in segment.replace(b"\0", b"")  # it may be UTF-16


def _evidence(image: Image.Image | None, content: bytes, metadata: bytes | None) -> Iterator[Declared]:
    if image is not None:
        yield from _of_image(image, content)
    if metadata and b'"exif"' in metadata and b'"exif": "{}"' not in metadata:
        yield from _of_img2dataset(metadata)


def _of_image(image: Image.Image, content: bytes) -> Iterator[Declared]:
    # Most files have none of these, so each is parsed only if it is there.
    info = image.info
    if image.format == "PNG":
        yield from _of_png(info)
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    if xmp:
        yield from _of_xmp(_plain(xmp))
    if "exif" in info or image.format == "TIFF":
        yield from _of_exif(image.getexif())
    if "comment" in info and _has_parameters(_plain(info["comment"])):
        yield Declared("synthetic", "comment")
    if _C2PA_STORE in content:
        yield _of_c2pa(content)


def _of_png(info: Mapping[str | tuple[int, int], object]) -> Iterator[Declared]:
    for chunk in _PROMPT_CHUNKS:
        if chunk in info:
            yield Declared("synthetic", f"png:{chunk}")
    for chunk in ("Software", "Source"):
        if chunk in info:
            yield from _of_software(_plain(info[chunk]))


def _of_software(name: str) -> Iterator[Declared]:
    if match := _GENERATOR.search(name):
        yield Declared("synthetic", f"software:{match.group()}")


def _of_xmp(xmp: str) -> Iterator[Declared]:
    for term in _XMP_SOURCE_TYPE.findall(xmp):
        if what := _source_type(term):
            yield Declared(what, "xmp:DigitalSourceType")
    for tool in _CREATOR_TOOL.findall(xmp):
        yield from _of_software(tool)


def _of_c2pa(content: bytes) -> Declared:
    """What the actions of a file's active C2PA manifest declare."""
    try:
        import c2pa
    except ImportError:
        return Declared(None, NOT_READ)
    try:
        settings = c2pa.Settings.from_dict(_C2PA_SETTINGS)
        with c2pa.Context(settings) as context, c2pa.Reader(io.BytesIO(content), context=context) as reader:
            store = json.loads(reader.json())
        found = {_source_type(str(term)) for term in _terms_of_actions(store["manifests"][store["active_manifest"]])}
    except (c2pa.C2paError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Declared(None, "c2pa (unreadable)")
    what = "synthetic" if "synthetic" in found else "camera" if "camera" in found else None
    return Declared(what, "c2pa" if store.get("validation_state") in _C2PA_SOUND else "c2pa (signature invalid)")


def _terms_of_actions(manifest: Mapping[str, Any]) -> Iterator[object]:
    """Source types that the actions of a C2PA manifest give the picture as a whole."""
    for assertion in manifest["assertions"]:
        if assertion["label"].startswith("c2pa.actions"):  # also c2pa.actions.v2, c2pa.actions__1
            for action in assertion["data"]["actions"]:
                if action["action"] != "c2pa.placed":  # which describes an ingredient
                    yield action.get("digitalSourceType")


def _source_type(term: str) -> str | None:
    """What one of IPTC's terms declares; `term` is its name, or its address."""
    return _SOURCE_TYPES.get(term.rstrip("/").rpartition("/")[2])


def _of_exif(exif: Image.Exif) -> Iterator[Declared]:
    yield from _of_tags(
        "exif:",
        make=_plain(exif.get(_EXIF_MAKE)),
        model=_plain(exif.get(_EXIF_MODEL)),
        software=_plain(exif.get(_EXIF_SOFTWARE)),
        description=_plain(exif.get(_EXIF_DESCRIPTION)),
        comment=_plain(exif.get_ifd(_EXIF_IFD).get(_EXIF_USER_COMMENT)),
    )


def _of_img2dataset(metadata: bytes) -> Iterator[Declared]:
    """img2dataset drops EXIF from the image, but keeps it in its JSON: as a string of JSON, with exifread's names."""
    try:
        tags = json.loads(json.loads(metadata)["exif"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # not img2dataset's "exif"
    if not isinstance(tags, dict):
        return
    yield from _of_tags(
        "json:exif ",
        make=_plain(tags.get("Image Make")),
        model=_plain(tags.get("Image Model")),
        software=_plain(tags.get("Image Software")),
        description=_plain(tags.get("Image ImageDescription")),
        comment=_plain(tags.get("EXIF UserComment")),
    )


def _of_tags(
    source: str, *, make: str, model: str, software: str, description: str, comment: str
) -> Iterator[Declared]:
    group, sub = ("Image ", "EXIF ") if source.startswith("json") else ("", "")
    yield from _of_software(software)
    if _has_parameters(comment):
        yield Declared("synthetic", f"{source}{sub}UserComment")
    if _MIDJOURNEY_JOB.search(description) or _has_parameters(description):
        yield Declared("synthetic", f"{source}{group}ImageDescription")
    for name, value in (("Make", make), ("Model", model)):
        if value:
            # ComfyUI writes its graph into these two tags of WebP files.
            what = "synthetic" if _COMFYUI_TAG.match(value) else "camera"
            yield Declared(what, f"{source}{group}{name}")


def _has_parameters(text: str) -> bool:
    # Two searches: a single expression would be quadratic in a comment that repeats "Steps: 1 " a million times.
    steps = _STEPS.search(text)
    return steps is not None and _AFTER_STEPS.search(text, steps.end()) is not None


def _plain(value: object) -> str:
    """Text of a tag in any encoding: the patterns are ASCII, so for UTF-16 it is enough to drop the zeros.

    A text of absurd length is truncated.
    """
    if isinstance(value, bytes):
        value = value[:_MAX_TEXT].decode("latin-1")
    return value[:_MAX_TEXT].replace("\0", "").strip() if isinstance(value, str) else ""
