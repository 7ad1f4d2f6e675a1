"""Reads a block with pyarrow alone and prints one JSON line per series: labels and samples.

Uses only what docs/formats/block.md promises to any reader of Parquet: the `labels` MAP, and
value = coalesce(float, mantissa / 10^exponent). Values are printed as the hex of their bits.

usage: read_block.py <block folder>
"""

import json
import struct
import sys
from pathlib import Path

import pyarrow.parquet as pq


def bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def main(folder: Path) -> None:
    series = pq.read_table(folder / "series.parquet").to_pydict()
    samples = pq.read_table(folder / "samples.parquet")
    times = samples["timestamp"].cast("int64").to_pylist()
    floats = samples["float"].to_pylist()
    mantissas = samples["mantissa"].to_pylist()
    exponents = samples["exponent"].to_pylist()
    by_series: dict[int, list] = {}
    for s, t, f, m, e in zip(samples["series"].to_pylist(), times, floats, mantissas, exponents, strict=True):
        value = f if f is not None else m / 10**e
        by_series.setdefault(s, []).append([t, bits(value)])
    for number, labels in zip(series["k_id"], series["labels"], strict=True):
        print(json.dumps({"labels": dict(labels), "samples": by_series.get(number, [])}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
