"""Knows files that are no images by their names, and says once for each folder which were left out."""

from collections import Counter
from collections.abc import Iterator

from pipelines.ingest.sidecars import split

_NAMES = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "dataset_info.json", "dataset_infos.json", "state.json", "sizes.json",
}  # fmt: skip
_ABOUT = {"readme", "license", "licence", "notice", "copying", "changelog"}  # without a suffix, or .txt
_TABLES = {"csv", "tsv", "jsonl"}
_SUFFIXES = _TABLES | {"md", "rst", "yaml", "yml", "toml", "ini", "db", "log", "py", "ipynb", "sh", "idx"}
_CONTAINERS = {  # of many images, or of arrays beside them
    "arrow": "Arrow", "feather": "Arrow", "mds": "MDS", "tfrecord": "TFRecord", "tfrecords": "TFRecord", "mdb": "LMDB",
    "lmdb": "LMDB", "h5": "HDF5", "hdf5": "HDF5", "npy": "NumPy", "npz": "NumPy", "beton": "FFCV", "lance": "Lance",
    "rec": "RecordIO", "msgpack": "MessagePack", "pkl": "pickle", "pickle": "pickle", "pt": "PyTorch", "avro": "Avro",
}  # fmt: skip
_SHOWN = 3


def kind(name: str) -> str | None:
    """What a file is that is no image by its name: the format of a container, "" for a readme, a table or the like."""
    stem, suffix = split(name)
    if suffix in _CONTAINERS:
        return _CONTAINERS[suffix]
    about = suffix in ("", "txt") and stem.lower() in _ABOUT
    return "" if about or name.lower() in _NAMES or suffix in _SUFFIXES else None


def what_to_do(container: str) -> str:
    """A sentence on what to do with a container that is not read."""
    how = ", such as by datasets.load_from_disk(FOLDER).to_parquet(FILE)" if container == "Arrow" else ""
    return f"curate reads folders of images, .tar and .parquet files; convert {container} files first{how}."


class LeftOut:
    """The files of a folder that are no images by their names."""

    def __init__(self) -> None:
        self._count = Counter[str]()
        self._names: dict[str, list[str]] = {}
        self._has_table = False

    def add(self, name: str, kind: str) -> None:
        """Count a file."""
        self._count[kind] += 1
        self._has_table |= split(name)[1] in _TABLES
        if self._count[kind] <= _SHOWN:
            self._names.setdefault(kind, []).append(name)

    def notes(self, root: str) -> Iterator[str]:
        """Say what was left out of a folder, in a sentence for each kind."""
        for kind, count in sorted(self._count.items()):
            names = ", ".join(self._names[kind]) + (", ..." if count > _SHOWN else "")
            if kind:
                files = "file" if count == 1 else "files"
                yield f"{root}: skipped {count} {kind} {files} ({names}). {what_to_do(kind)}"
                continue
            what = "a file that is no image by its name" if count == 1 else f"{count} files that are no images"
            table = ""
            if self._has_table:
                table = " A table gives its rows to the images if it is called metadata.csv and has a column file_name."
            yield f"{root}: skipped {what} ({names}).{table}"
