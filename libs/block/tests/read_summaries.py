"""Reads a downsampled block with pyarrow alone and prints one JSON line per series: labels and summaries.

Uses only what docs/formats/block.md promises to any reader of Parquet: an aggregate is coalesce(float, mantissa / 10^exponent),
and what follows from the others is null. Values are printed as the hex of their bits.

usage: read_summaries.py <block folder> <part>
"""

import json
import math
import struct
import sys
from pathlib import Path

import pyarrow.parquet as pq


def bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def lesser(a: float, b: float) -> float:
    return b if b < a or math.isnan(a) else a


def greater(a: float, b: float) -> float:
    return b if b > a or math.isnan(a) else a


def summary(row: dict) -> list:
    def of(name: str, default: float) -> float:
        if row[name + "_float"] is not None:
            return row[name + "_float"]
        mantissa = row[name + "_mantissa"]
        return default if mantissa is None else mantissa / 10 ** row["exponent"]

    whole = [row["first_timestamp"], row["timestamp"], row["count"], row["histograms"]]
    if row["count"] == 0:
        return [*whole, []]
    last = of("last", 0.0)
    first = of("first", last)
    floats = [
        first,
        last,
        of("sum", last),
        of("min", lesser(first, last)),
        of("max", greater(first, last)),
        of("resets", 0.0),
    ]
    return [*whole, [bits(v) for v in floats]]


def main(folder: Path, part: str) -> None:
    series = pq.read_table(folder / "series.parquet").to_pydict()
    table = pq.read_table(folder / part)
    for name in ("first_timestamp", "timestamp"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table[name].cast("int64"))
    by_series: dict[int, list] = {}
    for row in table.to_pylist():
        by_series.setdefault(row["series"], []).append(summary(row))
    for number, labels in zip(series["k_id"], series["labels"], strict=True):
        print(json.dumps({"labels": dict(labels), "summaries": by_series[number]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
