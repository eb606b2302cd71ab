"""Reading the CSV that lists the clips: what is accepted, what is refused and how it says so."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.data.clip_list import TextColumn, read_list

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=30)


@pytest.fixture
def write_csv(tmp_path):
    def write(content, name="clips.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@settings(deadline=None)
@given(texts=TEXTS)
def test_text_column_behaves_as_a_list(texts):
    column = TextColumn.of(texts)
    assert len(column) == len(texts) and list(column) == texts
    assert [column[i] for i in range(-len(texts), len(texts))] == texts + texts
    assert list(pickle.loads(pickle.dumps(column))) == texts
    order = column.argsort()
    assert order.tolist() == sorted(range(len(texts)), key=texts.__getitem__)
    assert list(column.take(order)) == sorted(texts)
    assert list(TextColumn.join([column, column.take(order), TextColumn.of([])])) == texts + sorted(texts)


def test_text_column_of_a_slice():
    column = TextColumn.from_arrow(pa.array(["a", "bc", "", "def"])[1:])
    assert list(column) == ["bc", "", "def"] and len(column.blob) == 5


def test_text_column_index_out_of_range():
    column = TextColumn.of(["a", "b"])
    for i in (2, -3):
        with pytest.raises(IndexError):
            column[i]


def test_list_keeps_the_order_of_the_csv_and_sorts_on_request(write_csv):
    path = write_csv("file_name,label\nb/2.npy,x\na/10.npy,y\nB.npy,z\na/9.npy,w\n")
    clips = read_list(path, ("file_name", "label"))
    assert list(clips.names) == ["b/2.npy", "a/10.npy", "B.npy", "a/9.npy"]
    assert clips.source == path and len(clips) == 4
    ordered = clips.sort()
    assert list(ordered.names) == ["B.npy", "a/10.npy", "a/9.npy", "b/2.npy"]
    assert list(ordered.columns["label"]) == ["z", "y", "w", "x"]
    assert [ordered.where(i) for i in range(4)] == [f"{path} row {row}" for row in (4, 3, 5, 2)]
    assert ordered.sort() is ordered


@pytest.mark.parametrize(
    ("content", "names", "rows"),
    [
        ("file_name\na.npy\nb.npy", ["a.npy", "b.npy"], [2, 3]),
        ("file_name\r\na.npy\r\nb.npy\r\n", ["a.npy", "b.npy"], [2, 3]),
        ("\ufefffile_name\na.npy\n", ["a.npy"], [2]),
        ("file_name\na.npy\n\n\nb.npy\n\n", ["a.npy", "b.npy"], [2, 5]),
        ("file_name,weight\na.npy,1\n\nb.npy,2\n", ["a.npy", "b.npy"], [2, 4]),
        ("file_name,weight\na.npy,1\n,\nb.npy,2\n", ["a.npy", "b.npy"], [2, 4]),
        ('file_name,label\n"a, b.npy","/m/1,/m/2"\n', ["a, b.npy"], [2]),
        ("label,file_name\nx,音/あ.npy\n", ["音/あ.npy"], [2]),
        ("file_name\n007\nNA\nnull\n1.50\n", ["007", "NA", "null", "1.50"], [2, 3, 4, 5]),
    ],
)
def test_csv_dialects(write_csv, content, names, rows):
    clips = read_list(write_csv(content), optional=("weight",))
    assert list(clips.names) == names
    assert clips.rows.tolist() == rows


def test_optional_columns_are_read_where_they_are(write_csv):
    with_weight = read_list(write_csv("file_name,weight,other\na.npy,0.5,x\nb.npy,,y\n"), optional=("weight", "label"))
    assert list(with_weight.columns) == ["file_name", "weight"]
    assert list(with_weight.columns["weight"]) == ["0.5", ""]
    assert list(read_list(write_csv("file_name\na.npy\n"), optional=("weight",)).columns) == ["file_name"]


def test_long_list_over_many_blocks(write_csv):
    names = [f"folder/{(i * 7919) % 100_000:06d}_{'x' * (i % 40)}.npy" for i in range(100_000)]
    clips = read_list(write_csv("file_name\n" + "\n".join(names)))
    assert list(clips.names) == names
    assert np.array_equal(clips.rows, np.arange(2, 100_002))
    assert list(clips.sort().names) == sorted(names)
    assert clips.names.blob.nbytes + clips.names.offsets.nbytes + clips.rows.nbytes < 5e6 + 100_001 * 12


def test_missing_list(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such list"):
        read_list(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="a folder, where a list is expected"):
        read_list(tmp_path)


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", ("file_name",), "clips.csv: cannot be read"),
        ("file_name\n", ("file_name",), "clips.csv: the list is empty"),
        ("file_name\n\n\n", ("file_name",), "clips.csv: the list is empty"),
        ("file_name,label\n", ("file_name",), "clips.csv: the list is empty"),
        ("filename\na.npy\n", ("file_name",), r"no column file_name \(its columns: filename\): rename 'filename'\?"),
        ("path,x\na,b\n", ("file_name",), r"no column file_name \(its columns: path, x\): one path a line"),
        ("a.npy\nb.npy\n", ("file_name",), "its first line is a clip already; put the line file_name above it"),
        ("file_name\na.npy\n", ("file_name", "label"), "no column label .*make_as_weighted_list"),
        ("file_name,label\na.npy,x\n\nb.npy,\n", ("file_name", "label"), "clips.csv row 4: no label"),
        ("file_name,label\n,x\n", ("file_name", "label"), "clips.csv row 2: no file_name"),
        ("file_name,label\na.npy,x,y\n", ("file_name", "label"), "Row #2: Expected 2 columns, got 3"),
        (b"file_name\n\xff\xfe.npy\n", ("file_name",), "cannot be read as a CSV in UTF-8"),
    ],
)
def test_unusable_lists_are_refused(write_csv, content, columns, message):
    with pytest.raises(ValueError, match=message):
        read_list(write_csv(content), columns)


def test_digest_changes_with_content_and_order(write_csv):
    digests = [
        read_list(write_csv(content)).digest()
        for content in ("file_name\na\nbc\n", "file_name\nab\nc\n", "file_name\nbc\na\n", "file_name\na\nbd\n")
    ]
    assert len(set(digests)) == 4
    assert read_list(write_csv("file_name\na\nbc\n", "other.csv")).digest() == digests[0]
