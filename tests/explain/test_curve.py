"""Tables of certificates: what is written is read, torn rows are written again."""

import pytest

from diffit.errors import DataError
from diffit.explain.measures.curve import (
    ABSTAIN,
    Row,
    RowWriter,
    certified_accuracy,
    certified_curve,
    read_rows,
)

ROWS = [
    Row(0, 3, 3, 0.1 + 0.2, True, 1.5),
    Row(10, 8, 9, 0.75, False, 0.25),
    Row(20, 8, ABSTAIN, 0.0, False, 90061.0),
]
LITERATURE = (
    "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    "0\t3\t3\t1.04\t1\t0:00:16.131212\n"
    "20\t8\t-1\t0.0\t0\t1 day, 0:00:01\n"
)


def write(path, rows):
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)


@pytest.fixture
def table(tmp_path):
    write(tmp_path / "t.tsv", ROWS)
    return tmp_path / "t.tsv"


def test_rows_come_back_as_they_were_written(table):
    assert read_rows(table) == ROWS
    assert table.read_text().splitlines()[1] == "0\t3\t3\t0.30000000000000004\t1\t0:00:01.500000"


def test_a_table_of_the_literature_is_read(tmp_path):
    (tmp_path / "t").write_text(LITERATURE)
    first, second = read_rows(tmp_path / "t")
    assert first == Row(0, 3, 3, 1.04, True, 16.131212)
    assert (second.predict, second.seconds) == (ABSTAIN, 86401)


@pytest.mark.parametrize("cut", range(1, 80, 3))
def test_a_killed_table_is_continued_to_the_same_bytes(table, cut):
    whole = table.read_bytes()
    table.write_bytes(whole[:-cut])
    with RowWriter(table) as writer:
        missing = [row for row in ROWS if row not in writer.done]
        assert missing
        for row in missing:
            writer.write(row)
    assert table.read_bytes() == whole


def test_a_torn_row_is_no_row(table):
    table.write_bytes(table.read_bytes()[:-3])
    assert read_rows(table) == ROWS[:-1]


def test_a_table_without_a_row_begins_again(tmp_path):
    for torn in ("", "idx\tla"):
        (tmp_path / "t").write_text(torn)
        write(tmp_path / "t", ROWS)
        assert read_rows(tmp_path / "t") == ROWS


def test_an_image_is_written_once(table):
    with RowWriter(table) as writer, pytest.raises(ValueError, match="in the table already"):
        writer.write(ROWS[0])


def test_certified_accuracy_counts_correct_images_of_enough_radius():
    assert certified_accuracy(ROWS, [0, 0.3, 0.31]) == [1 / 3, 1 / 3, 0]
    certain = [Row(i, 1, 1, r, True, 0) for i, r in enumerate([0.5, 1.0])]
    assert certified_accuracy(certain, [0, 0.5, 0.75, 1.0, 1.1]) == [1, 1, 0.5, 0.5, 0]


def test_the_curve_starts_at_no_radius_and_ends_at_no_image():
    radii, accuracy = certified_curve(ROWS)
    assert (radii[0], accuracy[0], accuracy[-1]) == (0, 1 / 3, 0)
    assert radii[-1] > ROWS[0].radius
    assert certified_curve(ROWS[1:])[1] == [0] * 200


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no table of certificates"),
        ("a\tb\n1\t2\n", "no table of certificates"),
        (LITERATURE + "30\t8\t8\n", "line 4 of"),
        (LITERATURE + "30\t8\t8\tnan\t1\t0:00:01\n", "has the radius nan"),
        (LITERATURE + "30\t8\t8\t-1\t1\t0:00:01\n", "has the radius -1"),
        (LITERATURE + "30\t8\t8\t1\t1\tsoon\n", "line 4 of"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(tmp_path, text, sentence):
    (tmp_path / "t").write_text(text)
    with pytest.raises(DataError) as error:
        read_rows(tmp_path / "t")
    assert sentence in str(error.value)


def test_files_of_others_are_never_overwritten(tmp_path):
    (tmp_path / "t").write_bytes(b"\x00\xffmy thesis")
    with pytest.raises(DataError, match="name another file"):
        RowWriter(tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == b"\x00\xffmy thesis"


def test_a_table_that_holds_an_image_twice_is_not_continued(tmp_path):
    (tmp_path / "t").write_text(LITERATURE + "0\t3\t3\t1.04\t1\t0:00:16\n")
    with pytest.raises(DataError, match="twice"):
        RowWriter(tmp_path / "t")


def test_missing_and_unwritable_tables_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "none.tsv")
    with pytest.raises(DataError, match="cannot be written"):
        RowWriter(tmp_path / "none" / "t.tsv")
    with pytest.raises(DataError, match="no certified image"):
        certified_accuracy([], [0])
