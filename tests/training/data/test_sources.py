import json
import pickle

import pytest

from elastic_attention import DataError
from elastic_attention.training.data.sources import open_source
from made_rows import make_row, make_rows, write_rows

ROWS = make_rows(11)


def write_parquet(path, rows, group=4):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def write_dataset(path, rows, shards=2):
    """What `datasets.Dataset.save_to_disk` leaves: Arrow streams, and a state that names them."""
    import pyarrow

    path.mkdir()
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    cut = -(-len(rows) // shards)
    for i, name in enumerate(names):
        table = pyarrow.Table.from_pylist(rows[i * cut : (i + 1) * cut], schema=pyarrow.Table.from_pylist(rows).schema)
        with pyarrow.OSFile(str(path / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (path / "dataset_info.json").write_text("{}")
    return path


WRITERS = {"rows.jsonl": write_rows, "rows.parquet": write_parquet, "rows": write_dataset}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_reads_the_same_rows_in_any_order(tmp_path, name):
    source = open_source(WRITERS[name](tmp_path / name, ROWS))
    assert len(source) == 11
    for index in (10, 0, 3, 4, 3, 7):
        assert source.read(index) == ROWS[index]
    assert pickle.loads(pickle.dumps(source)).read(5) == ROWS[5]
    assert name in source.where(0) and source.where(0) != source.where(1)


@pytest.mark.parametrize("name", WRITERS)
def test_the_checksum_is_of_the_content(tmp_path, name):
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    one = open_source(WRITERS[name](tmp_path / name, ROWS))
    same = open_source(WRITERS[name](tmp_path / "b" / name, ROWS))
    other = open_source(WRITERS[name](tmp_path / "c" / name, [*ROWS[:-1], make_row(99)]))
    assert one.digest() == same.digest() != other.digest()


def test_lines_are_counted_as_an_editor_counts(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + json.dumps(ROWS[0]).encode() + b"\r\n\n  \n" + json.dumps(ROWS[1]).encode())
    source = open_source(path)
    assert [source.where(i) for i in range(len(source))] == [f"{path}:2", f"{path}:5"]
    assert [source.read(i) for i in (1, 0)] == [ROWS[1], ROWS[0]]


@pytest.mark.parametrize("line", [b"{", b'{"a": 1} {"b": 2}', b'{"a": "\xff"}', b"[" * 100_000])
def test_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + line + b"\n")
    source = open_source(path)
    assert source.read(0) == ROWS[0]
    with pytest.raises(DataError, match=r"a\.jsonl:2: no valid JSON"):
        source.read(1)


def test_damaged_rows_of_a_table_are_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=4, compression="none")
    first = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[first : first + 40] = bytes(byte ^ 0x5A for byte in content[first : first + 40])
    path.write_bytes(content)
    source = open_source(path)
    assert source.read(0) == ROWS[0]
    with pytest.raises(DataError, match=r"(?s)a\.parquet: row 6: cannot be read .*write the table again"):
        source.read(5)
    assert source.read(10) == ROWS[10]


def test_other_columns_are_named(tmp_path):
    rows = [row | {"id": 1} for row in ROWS]
    for writer, name in ((write_parquet, "rows.parquet"), (write_dataset, "rows")):
        with pytest.raises(DataError, match=rf"{name}: has unknown keys \['id'\]"):
            open_source(writer(tmp_path / name, rows))
    with pytest.raises(DataError, match=r"misses \['answer'\]"):
        open_source(write_parquet(tmp_path / "b.parquet", [{"context": "", "question": "", "category": ""}]))


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "folder").mkdir()
    splits = tmp_path / "splits"
    (splits / "train").mkdir(parents=True)
    (splits / "train" / "state.json").touch()
    (splits / "dataset_dict.json").touch()
    selected = write_dataset(tmp_path / "selected", ROWS)
    (selected / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}')
    damaged = write_dataset(tmp_path / "damaged", ROWS)
    (damaged / "state.json").write_text('{"_data_files": 3}')
    for name, said in {
        "nowhere.jsonl": "no such file",
        "a.csv": ".csv is unknown; give a .jsonl, .json or .parquet",
        "empty.jsonl": "holds no record",
        "bad.parquet": "no readable Parquet file",
        "folder": "a folder without state.json",
        "splits": "several splits; name the folder of one, such as .*train",
        "selected": "flatten_indices",
        "damaged": "is damaged",
    }.items():
        with pytest.raises(DataError, match=said):
            open_source(tmp_path / name)


def test_a_dataset_reads_no_file_outside_its_folder(tmp_path):
    folder, outside = write_dataset(tmp_path / "rows", ROWS), write_dataset(tmp_path / "other", ROWS)
    secret = next(outside.glob("*.arrow"))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"../other/{secret.name}"}]}))
    (folder / secret.name).unlink()
    with pytest.raises(DataError, match="no readable Arrow file"):
        open_source(folder)


def test_tables_without_pyarrow_name_the_extra(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"elastic-attention\[data\]"):
        open_source(path)
