"""Reads a block with DuckDB, by one of the statements that a page of the documentation shows indented, and prints a JSON line per row:
labels as an object, times in milliseconds, floats as the hex of their bits. A statement that makes a view is followed by a read of it
all; one that reads a view is run after the statement before it that makes one. Without a number it prints how many there are.

usage: read_page.py <folder> <page> [<number, from 0>]
"""

import json
import os
import struct
import sys
from pathlib import Path

import duckdb

INDENT = "    "


def statements(page: Path) -> list[str]:
    """All that begin with SELECT or CREATE, up to their semicolon."""
    found: list[str] = []
    is_open = False
    for line in page.read_text().splitlines():
        if not is_open and line.startswith((INDENT + "SELECT ", INDENT + "CREATE ")):
            is_open = True
            found.append("")
        if is_open:
            assert line.startswith(INDENT), f"a statement ends without a semicolon: {found[-1]}"
            found[-1] += line.removeprefix(INDENT) + "\n"
            is_open = not line.endswith(";")
    return [statement.strip().removesuffix(";") for statement in found]


def plain(value: object) -> object:
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    if isinstance(value, dict):
        return {name: plain(of_name) for name, of_name in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value


def main(folder: Path, page: Path, *number: str) -> None:
    all_statements = statements(page)
    if not number:
        print(len(all_statements))
        return
    os.chdir(folder)
    connection = duckdb.connect()
    wanted = int(number[0])
    views = [s for s in all_statements[: wanted + 1] if s.startswith("CREATE")]
    statement = all_statements[wanted]
    if " FROM samples" in statement or statement.startswith("CREATE"):
        connection.execute(views[-1])
    if statement.startswith("CREATE"):
        assert statement.count("\n") < 3, statement
        statement = "SELECT * FROM samples"
    rows = connection.sql(f"SELECT * REPLACE (epoch_ms(timestamp) AS timestamp) FROM ({statement})")
    names = rows.columns
    for row in rows.fetchall():
        print(json.dumps({name: plain(value) for name, value in zip(names, row, strict=True)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve(), *sys.argv[3:])
