"""Rows of protocols and of tables: each with the place that an error names, each with as many columns as it should."""

import csv
from collections.abc import Collection, Iterator
from io import StringIO
from pathlib import Path
from typing import Literal

from streamdet.errors import DataError, MissingError


def lines(path: Path, columns: str) -> Iterator[tuple[str, list[str]]]:
    """Read a protocol: columns between white space, no header.

    Args:
        path: the protocol.
        columns: their names, comma-separated; as many as these are on every line.

    Yields:
        `FILE:LINE`, and the columns.

    Raises:
        MissingError: no such file.
        DataError: it is no text, or a line has more or fewer columns.
    """
    expected = len(columns.split(","))
    for number, line in enumerate(_text(path).splitlines(), 1):
        where, found = f"{path}:{number}", line.split()
        if len(found) != expected:
            raise DataError.of(f"{where} columns", len(found), f"{expected}: {columns}")
        yield where, found


def table(path: Path, needed: Collection[str], delimiter: str = ",") -> Iterator[tuple[str, dict[str, str]]]:
    """Read a table with a header; lines without anything in them are passed over.

    Args:
        path: the table.
        needed: columns that it must have, among any others.
        delimiter: a comma, with quotes as spreadsheets write them; with any other a quote is a letter like the rest.

    Yields:
        `FILE:LINE`, and the row by its columns' names.

    Raises:
        MissingError: no such file.
        DataError: it is no text, a needed column is missing, or a row has more or fewer columns than the header.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    rows = csv.reader(StringIO(_text(path), newline=""), delimiter=delimiter, quoting=quoting)
    try:
        header = next(rows, [])
        if missing := sorted(set(needed) - set(header)):
            raise DataError.of(f"{path} columns", header, f"{', '.join(missing)} among them")
        for row in rows:
            if row:
                where = f"{path}:{rows.line_num}"
                if len(row) != len(header):
                    raise DataError.of(f"{where} columns", len(row), f"{len(header)}: {', '.join(header)}")
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError.of(f"{path}:{rows.line_num}", str(error), "a row of a table") from None


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingError.of("table", str(path), "a file that exists")
    try:
        return path.read_text("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        raise DataError.of("table", str(path), f"text in UTF-8 ({error.reason} at byte {error.start})") from None
