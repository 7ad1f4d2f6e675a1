"""Reads all parts of a block with pyarrow alone and prints one JSON object: of each part its rows. Times are milliseconds, floats the
hex of their bits, maps lists of pairs.

usage: read_parts.py <block folder>
"""

import json
import struct
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def plain(value: object) -> object:
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    if isinstance(value, dict):
        return {name: plain(of_name) for name, of_name in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def rows(part: Path) -> list:
    table = pq.read_table(part)
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(at, field.name, table[field.name].cast("int64"))
    return [plain(row) for row in table.to_pylist()]


def main(folder: Path) -> None:
    parts = sorted(folder.glob("*.parquet"))
    print(json.dumps({part.name: rows(part) for part in parts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
