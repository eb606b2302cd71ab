"""Archives of audio files: tar, zip and parquet, made of the files of a folder."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def files_in(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_tar(path: Path, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_parquet(path: Path, files: Sequence[tuple[str | None, bytes | None]], column: str = "audio", group: int = 3) -> Path:
    """As the datasets of Hugging Face: a struct of bytes and path, which the schema's metadata call audio."""
    rows = pa.array(
        [{"bytes": content, "path": name} for name, content in files], pa.struct({"bytes": "binary", "path": "string"})
    )
    table = pa.table({"id": pa.array(range(len(files))), column: rows})
    features = {"info": {"features": {"id": {"_type": "Value"}, column: {"_type": "Audio"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path, row_group_size=group)
    return path


def write_labelled_parquet(path: Path, files: Mapping[str, bytes], group: int = 2, **columns: tuple[Sequence, dict]) -> Path:
    """As the labelled data sets of Hugging Face: further columns, each with its values and what the metadata say of it."""
    rows = pa.array(
        [{"bytes": content, "path": name} for name, content in files.items()], pa.struct({"bytes": "binary", "path": "string"})
    )
    table = pa.table({"audio": rows} | {name: pa.array(values) for name, (values, _) in columns.items()})
    features = {"audio": {"_type": "Audio"}} | {name: feature for name, (_, feature) in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return path
