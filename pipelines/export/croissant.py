"""The croissant.json of an export: its files and records in Croissant 1.1 (MLCommons), for tools that find data.

Of parquet the records are the rows of the shards. Of tars there are two kinds of record: the rows of kept.parquet, and
the images with their captions, classes and JSON, which the key joins.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.distribution import VERSION
from pipelines.export.card import LICENSE, Facts
from pipelines.export.sample import IMAGE

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_ENCODINGS = {IMAGE: "image/jpeg", "txt": "text/plain", "cls": "text/plain", "json": "application/json"}
_INSIDE = {"sc:ImageObject": {"transform": {"jsonPath": "bytes"}}}  # of Hugging Face's struct
_COLUMNS = {
    "key": "sc:Text", "uid": "sc:Text", "pseudo_label": "sc:Text", "confidence": "sc:Float",
    "prob_synthetic": "sc:Float", "format": "sc:Text", "width": "sc:Integer", "height": "sc:Integer",
    "source": "sc:Text", "member": "sc:Text", "sha256": "sc:Text",
}  # fmt: skip


def describe(
    facts: Facts, files: Sequence[tuple[str, str]], kept_sha256: str, classes: Sequence[str]
) -> dict[str, Any]:
    """The description of an export as JSON-LD; `files` are its shards, each name with its SHA-256."""
    as_parquet = facts.config.format == "parquet"
    kind = "application/x-parquet" if as_parquet else "application/x-tar"
    shards = [_file(name, kind, sha256) for name, sha256 in files]
    if as_parquet:
        rows = _file_set("shards", kind, facts.pattern, ())
        found, records = [rows], [_records("images", "shards", {"image": "sc:ImageObject", **_columns(facts)})]
    else:
        suffixes = _suffixes(facts)
        names = [name for name, _ in files]
        found = [
            _file("kept.parquet", "application/x-parquet", kept_sha256),
            *(_file_set(f"{suffix}-files", _ENCODINGS[suffix], f"*.{suffix}", names) for suffix in suffixes),
        ]
        records = [_records("kept", "kept.parquet", _columns(facts)), *map(_members, suffixes)]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": facts.name,
        "description": (
            f"{facts.summary.kept} of the {facts.summary.pool} images of a crawl, chosen by curate {VERSION}."
            + (f" Classes: {', '.join(classes)}." if classes else "")
        ),
        "license": LICENSE,
        "distribution": [*shards, *found],
        "recordSet": records if facts.summary.kept else [],
    }


def _suffixes(facts: Facts) -> list[str]:
    found = [IMAGE]
    found += ["txt"] if facts.summary.captions else []
    found += ["cls"] if facts.has_labels else []
    return [*found, "json"]


def _columns(facts: Facts) -> dict[str, str]:
    if facts.config.format == "parquet":
        label = {"label": "sc:Integer"} if facts.has_labels else {}
        caption = {"text": "sc:Text"} if facts.summary.captions else {}
        return {**label, **caption, "json": "sc:Text", **_COLUMNS}
    return {**({"cls": "sc:Integer"} if facts.has_labels else {}), **_COLUMNS}


def _file(name: str, encoding: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": encoding,
        "sha256": sha256,
    }


def _file_set(name: str, encoding: str, includes: str, shards: Iterable[str]) -> dict[str, Any]:
    inside = [{"@id": shard} for shard in shards]
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        **({"containedIn": inside} if inside else {}),
        "encodingFormat": encoding,
        "includes": includes,
    }


def _records(name: str, file: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Records that are the rows of a parquet file, or of a set of them."""
    of = {"fileObject" if file.endswith(".parquet") else "fileSet": {"@id": file}}
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{name}/{column}",
            "name": column,
            "dataType": kind,
            "source": {**of, "extract": {"column": column}, **_INSIDE.get(kind, {})},
        }
        for column, kind in columns.items()
    ]
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "key": {"@id": f"{name}/key"}, "field": fields}


def _members(suffix: str) -> dict[str, Any]:
    """Records that are the members of one suffix: the key of their sample, and their content."""
    name = f"{suffix}-members"
    of = {"fileSet": {"@id": f"{suffix}-files"}}
    key = {
        "@type": "cr:Field",
        "@id": f"{name}/key",
        "name": "key",
        "dataType": "sc:Text",
        "references": {"field": {"@id": "kept/key"}},
        "source": {**of, "extract": {"fileProperty": "filename"}, "transform": {"regex": r"^([^.]*)\..*$"}},
    }
    content = {
        "@type": "cr:Field",
        "@id": f"{name}/content",
        "name": "content",
        "dataType": "sc:ImageObject" if suffix == IMAGE else "sc:Text",
        "source": {**of, "extract": {"fileProperty": "content"}},
    }
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "key": {"@id": f"{name}/key"}, "field": [key, content]}
