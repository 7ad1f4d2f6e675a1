"""Reads a block with pyarrow alone and prints one JSON line per series: labels and samples.

Uses only what docs/formats/block.md promises to any reader of Parquet: the `labels` MAP,
value = coalesce(float, mantissa / 10^exponent), and a sample's time beside it, or in row k_times_last_row - tick of
times.parquet. Values are printed as the hex of their bits.

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
    numbers = samples["series"].to_pylist()
    if "tick" in samples.column_names:
        all_times = pq.read_table(folder / "times.parquet")["timestamp"].cast("int64").to_pylist()
        last_rows = series["k_times_last_row"]
        ticks = samples["tick"].to_pylist()
        times = [all_times[last_rows[s] - tick] for s, tick in zip(numbers, ticks, strict=True)]
    else:
        times = samples["timestamp"].cast("int64").to_pylist()
    floats = samples["float"].to_pylist()
    mantissas = samples["mantissa"].to_pylist()
    exponents = samples["exponent"].to_pylist()
    by_series: dict[int, list] = {}
    for s, t, f, m, e in zip(numbers, times, floats, mantissas, exponents, strict=True):
        value = f if f is not None else m / 10**e
        by_series.setdefault(s, []).append([t, bits(value)])
    for number, labels in zip(series["k_id"], series["labels"], strict=True):
        print(json.dumps({"labels": dict(labels), "samples": by_series.get(number, [])}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
