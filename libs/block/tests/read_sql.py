"""Reads all blocks of a tenant with DuckDB, by one of the statements that a page of the documentation shows as blocks of `sql`, from 0,
and prints one JSON line per series: labels and samples. Values are printed as the hex of their bits.

usage: read_sql.py <folder> <page> <number>
"""

import json
import os
import struct
import sys
from pathlib import Path

import duckdb


def of_a_bucket(page: Path, number: int) -> str:
    """A statement of the page that it shows as such."""
    blocks = page.read_text().split("```sql\n")[1:]
    return blocks[number].split("```")[0].strip().removesuffix(";")


def bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def main(folder: Path, page: Path, number: str) -> None:
    shown = of_a_bucket(page.resolve(), int(number))
    os.chdir(folder)
    rows = duckdb.sql(
        f"SELECT map_keys(labels), map_values(labels), epoch_ms(timestamp), value FROM ({shown}) ORDER BY 1, 2, 3"
    ).fetchall()
    by_series: dict[tuple, list] = {}
    for names, values, t, value in rows:
        by_series.setdefault(tuple(zip(names, values, strict=True)), []).append([t, bits(value)])
    for labels, samples in by_series.items():
        print(json.dumps({"labels": dict(labels), "samples": samples}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
