"""Recognizes image formats by the bytes of a file, never by its name."""

FORMATS = {  # extension of the pool's members -> Pillow's name
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "avif": "AVIF",
    "jp2": "JPEG2000",
}
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def sniff(content: bytes) -> str | None:
    """Recognize the format by the first bytes: the file extension, also of formats not in `FORMATS`, or None."""
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if content.startswith(b"BM") and int.from_bytes(content[14:18], "little") in _BMP_HEADER_SIZES:
        return "bmp"
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "cr2" if content[8:10] == b"CR" else "tif"
    if content[4:8] == b"ftyp":
        brands = content[8 : min(int.from_bytes(content[:4], "big"), 256)]
        if any(brand in brands for brand in _AVIF_BRANDS):
            return "avif"
        return "heic" if any(brand in brands for brand in _HEIF_BRANDS) else None
    if content.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "jp2"
    if content.startswith((b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")):
        return "jxl"
    if content.startswith(b"8BPS"):
        return "psd"
    if content.startswith(b"\0\0\1\0") and 0 < int.from_bytes(content[4:6], "little") <= 64:
        return "ico"
    if content[:2] in (b"P4", b"P5", b"P6") and content[2:3].isspace():
        return "pnm"
    return "svg" if content.lstrip()[:1] == b"<" and b"<svg" in content[:1024] else None


def is_truncated(format_: str, content: bytes) -> bool:
    """Whether the end is missing from a file that does not decode, as far as its format shows it."""
    match format_:
        case "jpg":
            return b"\xff\xd9" not in content[-64:]  # some cameras pad after the end marker
        case "png":
            return b"IEND" not in content[-64:]
        case "gif":
            return not content.rstrip(b"\0").endswith(b";")
        case "webp":
            return len(content) < int.from_bytes(content[4:8], "little") + 8
        case "bmp":
            return len(content) < int.from_bytes(content[2:6], "little")
        case _:
            return False


def describe_other(content: bytes) -> str:
    """Describe bytes that are not an image: what crawls usually get instead of one."""
    head = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<!--")):
        return "HTML"
    if head.startswith((b"<?xml", b"<")):
        return "XML"
    if head.startswith((b"{", b"[")):
        return "JSON"
    if head.startswith(b"%pdf"):
        return "PDF"
    if head.startswith((b"\x1f\x8b", b"pk\3\4")):
        return "a compressed archive"
    return "text" if head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head) else "unknown bytes"
