"""Records, and the texts of their fields: .jsonl, .json, .csv, .tsv and .parquet."""

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpt2core.data.json_array import array_items
from gpt2core.data.text_files import expansion_budget, lines, refused
from gpt2core.errors import UserError
from gpt2core.extras import needs_extra
from gpt2core.storage.bounds import check_regular
from gpt2core.tokenizer import check_unicode

# A record is read as a whole, and its objects may take twenty times its characters.
LONGEST_RECORD = 1 << 26
ROWS_AT_ONCE = 256  # of a .parquet file
_MOST_NAMES = 20  # of fields in a message


Records = Iterator[tuple[str, Any]]  # where a record stands, such as `line 3`, and the record


def jsonl_texts(path: Path, blocks: Iterable[str], text_field: str) -> Iterator[str]:
    """Of one object a line."""
    for where, record in jsonl_records(path, blocks):
        yield _text_of(record, text_field, path, where)


def json_texts(path: Path, blocks: Iterable[str], text_field: str) -> Iterator[str]:
    """Of an array of objects or texts, or of one object a line."""
    for where, record in json_records(path, blocks):
        is_text = isinstance(record, str) and where.startswith("record")
        yield _text_of({text_field: record} if is_text else record, text_field, path, where)


def jsonl_records(path: Path, blocks: Iterable[str]) -> Records:
    """One object a line."""
    for number, line in enumerate(lines(path, blocks, LONGEST_RECORD), start=1):
        if line.strip():
            yield f"line {number}", _parsed(path, line, f"line {number}: ")


def json_records(path: Path, blocks: Iterable[str]) -> Records:
    """The items of an array, or one object a line."""
    blocks = iter(blocks)
    head = ""
    while not head.strip() and (block := next(blocks, None)) is not None:
        head = head[-1:] + block  # blanks before the first character say nothing
    blocks = itertools.chain((head,), blocks)
    if not head.lstrip().startswith("["):
        yield from jsonl_records(path, blocks)
        return
    for number, record in enumerate(array_items(path, blocks, LONGEST_RECORD), start=1):
        yield f"record {number}", record


def csv_texts(path: Path, blocks: Iterable[str], text_field: str, delimiter: str) -> Iterator[str]:
    """Rows below a header: of the column `text_field`, or of the only one. A quoted field may have line ends."""
    rows = _csv_rows(path, blocks, delimiter)
    _, header = next(rows, ("", []))
    if text_field not in header and len(header) != 1:
        columns = named(header)
        raise refused(path, f"no column {text_field!r} (it has {columns})", "set {text_field}")
    column = header.index(text_field) if text_field in header else 0
    for _, row in rows:
        yield row[column]


def csv_records(path: Path, blocks: Iterable[str], delimiter: str) -> Records:
    """Rows below a header."""
    rows = _csv_rows(path, blocks, delimiter)
    _, header = next(rows, ("", []))
    for where, row in rows:
        yield where, dict(zip(header, row, strict=True))


def _csv_rows(path: Path, blocks: Iterable[str], delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """The header and the rows that are not empty, each with the line on which it ends."""
    csv.field_size_limit(LONGEST_RECORD)
    rows = csv.reader((f"{line}\n" for line in lines(path, blocks, LONGEST_RECORD)), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        yield "line 1", header
        for row in rows:
            if row and len(row) != len(header):
                what = f"line {rows.line_num}: {len(row)} fields, but the header has {len(header)}"
                raise refused(path, what, "quote fields that contain the separator")
            if row:
                yield f"line {rows.line_num}", row
    except csv.Error as error:
        raise refused(path, f"line {rows.line_num}: not valid {path.suffix or 'CSV'} ({error})") from None


def named(fields: Iterable[str]) -> str:
    """The first names, for a message; a small file may claim millions."""
    first = list(itertools.islice(fields, _MOST_NAMES + 1))
    return ", ".join(map(repr, first[:_MOST_NAMES])) + ", ..." * (len(first) > _MOST_NAMES) or "none"


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(path, f"{where}not valid JSON ({error})") from None


def _text_of(record: Any, text_field: str, path: Path, where: str) -> str:
    if not isinstance(record, dict):
        raise refused(path, f"{where}: not a JSON object but {type(record).__name__}", "each line must be one")
    if text_field not in record:
        fields = named(record)
        raise refused(path, f"{where}: no field {text_field!r} (it has {fields})", "set {text_field}")
    text = record[text_field]
    if not isinstance(text, str):
        raise refused(path, f"{where}: field {text_field!r} is not a text but {type(text).__name__}")
    try:
        check_unicode(text)
    except UserError as error:
        raise refused(path, f"{where}: field {text_field!r}: {error}") from None
    return text


def parquet_texts(path: Path, text_field: str, on_bytes: Callable[[int], None]) -> Iterator[str]:
    """Of a column of texts."""
    for where, record in parquet_records(path, [text_field], on_bytes, texts=True):
        if record[text_field] is None:
            raise refused(path, f"{where}: column {text_field!r} is null", "remove the row")
        yield record[text_field]


def parquet_records(
    path: Path, fields: list[str] | None, on_bytes: Callable[[int], None], *, texts: bool = False
) -> Records:
    """Rows of the columns `fields`, None: of all; with `texts` each must be of texts."""
    with needs_extra("a .parquet file"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    if not path.exists():
        raise refused(path, "the file is missing")
    check_regular(path)
    try:
        with path.open("rb") as handle, pq.ParquetFile(handle) as table:
            names = fields if fields is not None else table.schema_arrow.names
            for field in names:
                _check_column(path, table.schema_arrow, field, texts)
            _check_groups(path, table.metadata)
            columns = [table.schema.column(number) for number in range(len(table.schema))]
            repeating = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
            # As dictionaries a text that stands in every row, or often in one, is in memory once; it takes longer.
            with path.open("rb") as again, pq.ParquetFile(again, read_dictionary=repeating) as packed:
                budget = expansion_budget(path)
                for row, (size, record) in enumerate(_parquet_rows(table, packed, names), start=1):
                    if size > LONGEST_RECORD:
                        raise refused(path, f"row {row}: longer than {LONGEST_RECORD:,} bytes", "split it")
                    budget.take(size)
                    yield f"row {row}", record()
    except UnicodeDecodeError as error:
        reason = f"column {', '.join(map(repr, fields or []))} holds text that is not valid UTF-8 ({error.reason})"
        raise refused(path, reason) from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise refused(path, f"not a readable .parquet file ({reason})") from None
    on_bytes(path.stat().st_size)


def _parquet_rows(plain: Any, packed: Any, names: list[str]) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """The size of each row's texts, and what makes the row; `packed` is the same file as dictionaries."""
    for group in range(plain.num_row_groups):
        options = {"batch_size": ROWS_AT_ONCE, "row_groups": [group], "columns": names}
        if _repeats_little(packed, group, names):
            for batch in plain.iter_batches(**options):
                for row in batch.to_pylist():
                    yield sum(len(value) for value in row.values() if isinstance(value, str)), partial(dict, row)
        else:
            for batch in packed.iter_batches(**options):
                for values in zip(*batch.columns, strict=True):
                    yield sum(map(_size, values)), partial(_row, names, values)


def _row(names: list[str], values: Iterable[Any]) -> dict[str, Any]:
    return {name: value.as_py() for name, value in zip(names, values, strict=True)}


def _repeats_little(packed: Any, group: int, names: list[str]) -> bool:
    """Whether all texts of a row group are columns, and none is so long that it could fill the memory in a batch."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first = next(packed.iter_batches(batch_size=1, row_groups=[group], columns=names), None)
    for column in first.columns if first is not None else ():
        if not isinstance(column, pa.DictionaryArray):
            return False
        longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
        if longest * ROWS_AT_ONCE > LONGEST_RECORD:
            return False
    return True


def _size(value: Any) -> int:
    """Bytes of the texts that a scalar of pyarrow stands for; of a list that is too long, those that make it so."""
    import pyarrow as pa

    if not value.is_valid:
        return 0
    if isinstance(value, pa.DictionaryScalar):
        return _size(value.value)
    if isinstance(value, pa.ListScalar):
        sizes = itertools.accumulate(map(_size, value.values))
        size = 0
        for size in sizes:
            if size > LONGEST_RECORD:
                break
        return size
    if isinstance(value, pa.StructScalar):
        return sum(map(_size, value.values()))
    return value.as_buffer().size if isinstance(value, pa.BinaryScalar) else 0


def _check_groups(path: Path, metadata: Any) -> None:
    """Raises UserError where pages expand out of all proportion. Columns are not asked: on damage pyarrow aborts."""
    budget = expansion_budget(path)
    for number in range(metadata.num_row_groups):
        budget.take(metadata.row_group(number).total_byte_size)


def _check_column(path: Path, schema: Any, text_field: str, texts: bool) -> None:
    import pyarrow as pa

    if text_field not in schema.names:
        columns = named(schema.names)
        raise refused(path, f"no column {text_field!r} (it has {columns})", "set {text_field}" if texts else "")
    if not texts:
        return
    kind = schema.field(text_field).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
        raise refused(path, f"column {text_field!r} is not text but {kind}", "set {text_field}")
