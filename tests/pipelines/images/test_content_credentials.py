"""C2PA manifests, signed here by c2pa-python itself, declare by the actions of the active manifest alone."""

import io
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.images.check import Accepted, Limits, examine, foreign_images

MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff"}
TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
STORE = struct.pack(">I4s", 37, b"jumd") + bytes.fromhex("6332706100110010800000aa00389b71") + b"\x03c2pa\0"

Found = tuple[str | None, str | None]
Ingredient = tuple[str, bytes]  # its relationship to the picture, and its file


def picture(kind: str = "JPEG", color: str = "red", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(out, kind, **options)
    return out.getvalue()


def found(content: bytes) -> Found:
    with foreign_images():
        accepted = examine(content, None, Limits(min_side=1, max_pixels=1 << 20, max_bytes=1 << 24))
    assert isinstance(accepted, Accepted), accepted
    return accepted.declared, accepted.declared_by


def action(name: str, term: str | None = None, **parameters: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"action": f"c2pa.{name}"}
    if term is not None:
        made["digitalSourceType"] = TERMS + term
    return made | ({"parameters": parameters} if parameters else {})


class Signer:
    """Signs pictures with a certificate that no list of trusted ones has."""

    def __init__(self, days: int = 10) -> None:
        self._chain, self._key = _certificate(days)

    def sign(
        self,
        actions: Sequence[dict[str, Any]],
        content: bytes | None = None,
        kind: str = "JPEG",
        ingredients: Sequence[Ingredient] = (),
    ) -> bytes:
        import c2pa

        manifest = {
            "claim_generator_info": [{"name": "tests", "version": "1"}],
            "title": "a picture",
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": list(actions)}}],
        }
        info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, self._chain, self._key, None)
        out = io.BytesIO()
        with c2pa.Builder(manifest) as builder, c2pa.Signer.from_info(info) as signer:
            for number, (relationship, ingredient) in enumerate(ingredients):
                told = {"title": "part", "relationship": relationship, "label": f"part {number}"}
                builder.add_ingredient(told, "image/jpeg", io.BytesIO(ingredient))
            builder.sign(signer, MIME[kind], io.BytesIO(content or picture(kind)), out)
        return out.getvalue()


def _certificate(days: int) -> tuple[bytes, bytes]:
    """A chain of two certificates as C2PA requires them, and the private key; PEM."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now, authority, signer = datetime.now(UTC), *(ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def named(name: str) -> x509.Name:
        parts = ((NameOID.COMMON_NAME, name), (NameOID.ORGANIZATION_NAME, "Tests"))
        return x509.Name([x509.NameAttribute(*part) for part in parts])

    def built(name: str, key: ec.EllipticCurvePrivateKey, is_authority: bool) -> x509.CertificateBuilder:
        usage = x509.KeyUsage(
            digital_signature=not is_authority, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, key_cert_sign=is_authority, crl_sign=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        return (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_authority, None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )

    root = built("authority", authority, True).sign(authority, hashes.SHA256())
    leaf = (
        built("signer", signer, False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
        .sign(authority, hashes.SHA256())
    )
    chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (leaf, root))
    key = signer.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return chain, key


@pytest.fixture(scope="module")
def signer() -> Signer:
    for name in ("c2pa", "cryptography"):
        pytest.importorskip(name, reason="the extra `c2pa` is not installed")
    return Signer()


@pytest.mark.parametrize("kind", sorted(MIME))
@pytest.mark.parametrize(
    ("term", "what"),
    [("trainedAlgorithmicMedia", "synthetic"), ("computationalCapture", "camera"), ("screenCapture", None)],
)
def test_the_action_that_created_the_picture_declares_it(signer: Signer, kind: str, term: str, what: str) -> None:
    assert found(signer.sign([action("created", term)], kind=kind)) == (what, "c2pa")


def test_a_picture_that_was_changed_after_it_was_signed_says_so(signer: Signer) -> None:
    content = bytearray(signer.sign([action("created", "trainedAlgorithmicMedia")], picture("PNG"), "PNG"))
    signed = bytes(content)
    at = signed.index(b"IDAT")
    size = int.from_bytes(signed[at - 4 : at], "big")
    other = picture("PNG", "blue")
    start = other.index(b"IDAT")
    other_size = int.from_bytes(other[start - 4 : start], "big")
    changed = signed[: at - 4] + other[start - 4 : start + other_size + 8] + signed[at + size + 8 :]
    assert found(signed) == ("synthetic", "c2pa")
    assert found(changed) == ("synthetic", "c2pa (signature invalid)")


def test_an_ingredient_declares_nothing_about_the_picture(signer: Signer) -> None:
    part = signer.sign([action("created", "trainedAlgorithmicMedia")])
    placed = action("placed", ingredientIds=["part 0"])
    photo = signer.sign(
        [action("created", "digitalCapture"), placed], picture(color="blue"), ingredients=[("componentOf", part)]
    )
    drawn = signer.sign(
        [action("created", "digitalCreation"), placed], picture(color="blue"), ingredients=[("componentOf", part)]
    )
    opened = signer.sign(
        [action("opened", ingredientIds=["part 0"])], picture(color="blue"), ingredients=[("parentOf", part)]
    )
    assert all(b"trainedAlgorithmicMedia" in content for content in (photo, drawn, opened))
    assert found(photo) == ("camera", "c2pa")
    assert found(drawn) == (None, "c2pa")
    assert found(opened) == (None, "c2pa")


def test_the_source_type_of_what_was_placed_is_not_that_of_the_picture(signer: Signer) -> None:
    part = signer.sign([action("created", "trainedAlgorithmicMedia")])
    actions = [
        action("created", "digitalCapture"),
        action("placed", "trainedAlgorithmicMedia", ingredientIds=["part 0"]),
    ]
    assert found(signer.sign(actions, ingredients=[("componentOf", part)])) == ("camera", "c2pa")


def test_a_later_action_of_a_model_makes_the_picture_synthetic(signer: Signer) -> None:
    def edited(term: str) -> bytes:
        return signer.sign([action("created", "digitalCapture"), action("edited", term)])

    assert found(edited("trainedAlgorithmicMedia")) == ("synthetic", "c2pa")
    assert found(edited("compositeWithTrainedAlgorithmicMedia")) == ("camera", "c2pa")


def test_a_camera_in_the_exif_counts_beside_a_manifest(signer: Signer) -> None:
    tags = Image.Exif()
    tags[0x010F] = "Leica"
    content = picture(exif=tags)
    assert found(signer.sign([action("created", "digitalCreation")], content)) == ("camera", "exif:Make")
    assert found(signer.sign([action("created", "trainedAlgorithmicMedia")], content)) == ("synthetic", "c2pa")


def test_a_damaged_manifest_costs_the_declaration_not_the_image(signer: Signer) -> None:
    content = signer.sign([action("created", "trainedAlgorithmicMedia")])
    at = content.index(b"c2pa.signature")
    assert found(content[:at] + b"X" * 40 + content[at + 40 :])[1] in ("c2pa (unreadable)", "c2pa (signature invalid)")
    box = struct.pack(">I4s", len(STORE) + 8, b"jumb") + STORE + TERMS.encode() + b"trainedAlgorithmicMedia"
    segment = b"JP\0\1\0\0\0\1" + box
    content = picture()
    forged = content[:2] + b"\xff\xeb" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
    assert found(forged) == (None, "c2pa (unreadable)")


def test_without_the_extra_a_manifest_declares_nothing_and_is_on_record(signer: Signer, tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x010F] = "Leica"
    files = {
        "generated": signer.sign([action("created", "trainedAlgorithmicMedia")]),
        "photo": signer.sign([action("created", "digitalCapture")], picture(exif=tags)),
        "plain": picture(),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    program = (
        "import json, sys; from pathlib import Path; sys.modules['c2pa'] = None\n"
        "from pipelines.images.check import Limits, examine\n"
        "limits = Limits(min_side=1, max_pixels=1 << 20, max_bytes=1 << 24)\n"
        "paths = [Path(path) for path in sys.argv[1:]]\n"
        "print(json.dumps([examine(path.read_bytes(), None, limits)[-2:] for path in paths]))"
    )
    paths = [str(tmp_path / f"{name}.jpg") for name in files]
    run = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [[None, "c2pa (not read)"], ["camera", "exif:Make"], [None, None]]


def test_nothing_is_fetched(signer: Signer) -> None:
    import c2pa

    asked = list[str]()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/manifest.c2pa"
        xmp = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            f'<rdf:Description xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="{address}"/>'
            "</rdf:RDF></x:xmpmeta>"
        )
        content = picture(xmp=xmp.encode(), comment=STORE)  # looks like a manifest, but only names one elsewhere
        with pytest.raises(c2pa.C2paError):
            c2pa.Reader("image/jpeg", io.BytesIO(content))
        assert asked == ["/manifest.c2pa"]  # the library fetches by default
        assert found(content) == (None, "c2pa (unreadable)")
        assert len(asked) == 1
        server.shutdown()
