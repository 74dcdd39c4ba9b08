"""Builds tars by the byte, for tests of archives that no tar program would write."""

import tarfile

from pipelines.storage.tar import BLOCK


def block(name: str, kind: bytes, size: int, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return block(name, kind, len(content)) + content + bytes(-len(content) % BLOCK)


def pax(**records: object) -> bytes:
    """A pax header; `__` in a name is a dot."""
    content = b""
    for name, value in records.items():
        rest = f" {name.replace('__', '.')}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        content += str(length).encode() + rest
    return member("pax", content, tarfile.XHDTYPE)


END = bytes(2 * BLOCK)
LAST = member("last.jpg", b"last")
