"""A sender of remote write 2.0 that shares nothing with the receiver: <address> <step> <seconds>.

The messages are those of https://prometheus.io/docs/specs/prw/remote_write_spec_2_0/, described here again, and encoded by Google's
protobuf package. The step "send" sends them, of the time that is given, and queries back over HTTP what was sent; "check" queries
it once more.
"""

import json
import struct
import sys
import urllib.error
import urllib.parse
import urllib.request

import pyarrow
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ADDRESS, STEP, NOW = sys.argv[1], sys.argv[2], int(sys.argv[3]) * 1000
TENANT = "rw2"
PACKAGE = "io.prometheus.write.v2"
CONTENT_TYPE = f"application/x-protobuf;proto={PACKAGE}.Request"
COUNTS = [f"X-Prometheus-Remote-Write-{kind}-Written" for kind in ("Samples", "Histograms", "Exemplars")]
STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]

# Message: field: (number, type), "*" for repeated, "?" for one of which none is set by default.
MESSAGES = {
    "Request": {"symbols": (4, "*string"), "timeseries": (5, "*TimeSeries")},
    "TimeSeries": {
        "labels_refs": (1, "*uint32"),
        "samples": (2, "*Sample"),
        "histograms": (3, "*Histogram"),
        "exemplars": (4, "*Exemplar"),
        "metadata": (5, "Metadata"),
        "created_timestamp": (6, "int64"),
    },
    "Exemplar": {"labels_refs": (1, "*uint32"), "value": (2, "double"), "timestamp": (3, "int64")},
    "Sample": {"value": (1, "double"), "timestamp": (2, "int64"), "start_timestamp": (3, "int64")},
    "Metadata": {"type": (1, "int32"), "help_ref": (3, "uint32"), "unit_ref": (4, "uint32")},
    "Histogram": {
        "count_int": (1, "?uint64"),
        "count_float": (2, "?double"),
        "sum": (3, "double"),
        "schema": (4, "sint32"),
        "zero_threshold": (5, "double"),
        "zero_count_int": (6, "?uint64"),
        "zero_count_float": (7, "?double"),
        "negative_spans": (8, "*BucketSpan"),
        "negative_deltas": (9, "*sint64"),
        "negative_counts": (10, "*double"),
        "positive_spans": (11, "*BucketSpan"),
        "positive_deltas": (12, "*sint64"),
        "positive_counts": (13, "*double"),
        "reset_hint": (14, "int32"),
        "timestamp": (15, "int64"),
        "custom_values": (16, "*double"),
        "start_timestamp": (17, "int64"),
    },
    "BucketSpan": {"offset": (1, "sint32"), "length": (2, "uint32")},
}
COUNTER, GAUGE, HISTOGRAM = 1, 2, 3


def messages(packed):
    """The classes of all messages; numbers of a list together or one by one, both of which receivers have to take."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{packed}.proto", package=PACKAGE, syntax="proto2")
    for message_name, fields in MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, (number, kind) in fields.items():
            plain = kind.lstrip("*?")
            field = message.field.add(name=name, number=number)
            field.label = field_type.LABEL_REPEATED if kind[0] == "*" else field_type.LABEL_OPTIONAL
            if plain in MESSAGES:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".{PACKAGE}.{plain}"
            else:
                field.type = getattr(field_type, f"TYPE_{plain.upper()}")
                if kind[0] == "*" and plain != "string":
                    field.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    of = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
    return {name: of(name) for name in MESSAGES}


class Sender:
    """Builds one request; strings become symbols in the order of their appearance."""

    def __init__(self, packed=True):
        self.of = messages(packed)
        self.request = self.of["Request"](symbols=[""])

    def symbol(self, text):
        if text not in self.request.symbols:
            self.request.symbols.append(text)
        return list(self.request.symbols).index(text)

    def refs(self, labels):
        return [self.symbol(text) for pair in sorted(labels.items()) for text in pair]

    def series(self, name, labels=None, samples=(), histograms=(), exemplars=(), metadata=None, created=0):
        series = self.request.timeseries.add(labels_refs=self.refs({"__name__": name, **(labels or {})}))
        for t, value, *start in samples:
            series.samples.add(timestamp=t, value=value)
            [start] = start or [created]
            if start:
                series.samples[-1].start_timestamp = start
        for histogram in histograms:
            histogram = dict(histogram)
            spans = {side: histogram.pop(side, []) for side in ("positive_spans", "negative_spans")}
            added = series.histograms.add(**histogram)
            for side, pairs in spans.items():
                for offset, length in pairs:
                    getattr(added, side).add(offset=offset, length=length)
        for t, value, of_exemplar in exemplars:
            series.exemplars.add(timestamp=t, value=value, labels_refs=self.refs(of_exemplar))
        if metadata:
            kind, help_text, unit = metadata
            series.metadata.type = kind
            series.metadata.help_ref = self.symbol(help_text)
            series.metadata.unit_ref = self.symbol(unit)
        if created:
            series.created_timestamp = created
        return series

    def send(self, **how):
        return send(self.request.SerializeToString(), **how)


def send(raw, encoding="snappy", content_type=CONTENT_TYPE, path="/api/v1/write"):
    """Gives status, the three counts, and text."""
    known = encoding in ("snappy", "zstd")
    body = pyarrow.compress(raw, codec=encoding, asbytes=True) if known else raw
    headers = {
        "Content-Type": content_type,
        "Content-Encoding": encoding,
        "X-Prometheus-Remote-Write-Version": "2.0.0",
        "User-Agent": "with_remote_write_2.py",
        "X-Scope-OrgID": TENANT,
    }
    request = urllib.request.Request(f"http://{ADDRESS}{path}", data=body, headers=headers, method="POST")
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as e:
        answer = e
    counts = [answer.headers.get(name) for name in COUNTS]
    return answer.status, [None if n is None else int(n) for n in counts], answer.read().decode()


def ask(path, **parameters):
    url = f"http://{ADDRESS}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    request = urllib.request.Request(url, headers={"X-Scope-OrgID": TENANT})
    return json.load(urllib.request.urlopen(request, timeout=30))["data"]


def stored(selector, kind="values"):
    """What is stored of a series: its times in milliseconds and its values as text, or its histograms."""
    result = ask("query", query=f"{selector}[1h]", time=NOW / 1000 + 1)["result"]
    if not result:
        return []
    same(len(result), 1, selector)
    return [[round(t * 1000), value] for t, value in result[0].get(kind, [])]


def same(got, wanted, what):
    if got != wanted:
        sys.exit(f"{what}: wanted {wanted!r}, got {got!r}")


def text(value):
    """A float as the API writes it, for those that are used here."""
    special = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}
    return special.get(repr(value), repr(value).removesuffix(".0"))


T = [NOW - 60_000 + i * 15_000 for i in range(4)]
CREATED = NOW - 3_600_000
INTEGERS = {
    "count_int": 12,
    "sum": 18.4,
    "schema": 0,
    "zero_threshold": 0.001,
    "zero_count_int": 2,
    # Buckets 0, 1, 3, 4 with 1, 2, 1, 1; -1 with 5.
    "positive_spans": [(0, 2), (1, 2)],
    "positive_deltas": [1, 1, -1, 0],
    "negative_spans": [(-1, 1)],
    "negative_deltas": [5],
}
INTEGER_BUCKETS = [
    [1, "-0.5", "-0.25", "5"],
    [3, "-0.001", "0.001", "2"],
    [0, "0.5", "1", "1"],
    [0, "1", "2", "2"],
    [0, "4", "8", "1"],
    [0, "8", "16", "1"],
]
FLOATS = {
    "count_float": 3.5,
    "sum": -1.25,
    "schema": 1,
    "zero_threshold": 0.0,
    "zero_count_float": 0.5,
    "positive_spans": [(2, 1)],
    "positive_counts": [3.0],
    "reset_hint": 3,
}
FLOAT_BUCKETS = [[3, "-0", "0", "0.5"], [0, "1.414213562373095", "2", "3"]]
CUSTOM = {
    "count_int": 6,
    "sum": 7.5,
    "schema": -53,
    "positive_spans": [(0, 1), (1, 2)],
    "positive_deltas": [1, 1, 1],
    "custom_values": [0.5, 1.0, 2.5],
}
CUSTOM_BUCKETS = [[3, "-Inf", "0.5", "1"], [0, "1", "2.5", "2"], [0, "2.5", "+Inf", "3"]]


def everything(job, **how_built):
    sender = Sender(**how_built)
    of = {"job": job}
    trace = {"trace_id": f"{job}-4bf92f3577b34da6", "span_id": "00f067aa0ba902b7"}
    sender.series(
        "orders_total",
        of,
        samples=[(t, 10.0 * i) for i, t in enumerate(T)],
        exemplars=[(T[1] + 7, 0.25, trace)],
        metadata=(COUNTER, "Orders, by job.", "orders"),
        created=CREATED,
    )
    # A counter that began anew unseen, and one that began while it was looked at; the same without saying so.
    anew = [(T[0], 100.0, CREATED)] + [(t, v, T[0] + 5000) for t, v in zip(T[1:], (150.0, 160.0, 165.0))]
    sender.series("anew_total", of, anew)
    sender.series("not_anew_total", of, [(t, v) for t, v, _ in anew])
    sender.series("fresh_total", of, [(T[1], 42.0), (T[2], 50.0)], created=T[0])
    sender.series("not_fresh_total", of, [(T[1], 42.0), (T[2], 50.0)])
    sender.series("odd_values", of, [(T[0], -0.0), (T[1], float("inf")), (T[2], float("-inf")), (T[3], float("nan"))])
    sender.series("goes_away", of, [(T[0], 1e-300), (T[1], STALE)], metadata=(GAUGE, "", ""))
    sender.series("größe µ", {"ключ": "值", **of}, [(T[0], 0.1)])
    sender.series(
        "sizes_bytes",
        of,
        histograms=[{**INTEGERS, "timestamp": T[0]}, {**INTEGERS, "timestamp": T[1], "start_timestamp": CREATED}],
        exemplars=[(T[0], 3.0, trace)],
        metadata=(HISTOGRAM, "Sizes.", "bytes"),
    )
    sender.series("weights", of, histograms=[{**FLOATS, "timestamp": T[0]}])
    sender.series("classes", of, histograms=[{**CUSTOM, "timestamp": T[0]}])
    # The same series may stand in a request more than once.
    sender.series("orders_total", of, samples=[(T[3] + 1000, 35.0)])
    return sender


def value(expression, time):
    """The value of the only series."""
    result = ask("query", query=expression, time=time / 1000)["result"]
    same(len(result), 1, expression)
    return float(result[0]["value"][1])


def check_starts(job):
    of = f'{{job="{job}"}}'
    for name, start in [("anew_total", T[0] + 5000), ("orders_total", CREATED), ("fresh_total", T[0])]:
        same(value(f"start_timestamp({name}{of})", T[2]), start / 1000, f"start of {name}")
    same(value(f"histogram_count(sizes_bytes{of})", T[1]), 12.0, "the histogram with a start")
    same(value(f"start_timestamp(sizes_bytes{of})", T[1]), CREATED / 1000, "start of the histogram")
    same(value(f"resets(anew_total{of}[30m])", T[3]), 1.0, "a start is a reset")
    same(value(f"resets(not_anew_total{of}[30m])", T[3]), 0.0, "no start is none")
    # Both are extrapolated alike.
    counted = [value(f"increase({name}{of}[50s])", T[3]) for name in ("anew_total", "not_anew_total")]
    same(round(counted[0] / counted[1] * 65, 6), 165.0, "what was counted before the start")
    same(value(f"increase(fresh_total{of}[30m])", T[2]), 50.0, "counted from the start")
    if not value(f"increase(not_fresh_total{of}[30m])", T[2]) < 50.0:
        sys.exit("without a start it is not known from where to count")


def check_everything(job):
    orders = [[t, text(10.0 * i)] for i, t in enumerate(T)] + [[T[3] + 1000, "35"]]
    same(stored(f'orders_total{{job="{job}"}}'), orders, "counter")
    odd = [[T[0], "-0"], [T[1], "+Inf"], [T[2], "-Inf"], [T[3], "NaN"]]
    same(stored(f'odd_values{{job="{job}"}}'), odd, "odd values")
    same(stored(f'goes_away{{job="{job}"}}'), [[T[0], "1e-300"]], "before the marker")
    gone = ask("query", query=f'goes_away{{job="{job}"}}', time=T[1] / 1000)
    same(gone["result"], [], "after the marker")
    same(stored(f'{{"größe µ", "ключ"="值", job="{job}"}}'), [[T[0], "0.1"]], "any characters")
    for name, times, count, total, buckets in [
        ("sizes_bytes", T[:2], "12", "18.4", INTEGER_BUCKETS),
        ("weights", T[:1], "3.5", "-1.25", FLOAT_BUCKETS),
        ("classes", T[:1], "6", "7.5", CUSTOM_BUCKETS),
    ]:
        wanted = {"count": count, "sum": total, "buckets": buckets}
        got = stored(f'{name}{{job="{job}"}}', "histograms")
        same(got, [[t, wanted] for t in times], name)
    exemplars = ask("query_exemplars", query=f'{{job="{job}"}}', start=CREATED / 1000, end=NOW / 1000)
    found = {}
    for series in exemplars:
        for e in series["exemplars"]:
            key = (series["seriesLabels"]["__name__"], e["labels"]["trace_id"], e["labels"]["span_id"])
            found[key] = (float(e["value"]), round(e["timestamp"] * 1000))
    trace = (f"{job}-4bf92f3577b34da6", "00f067aa0ba902b7")
    wanted = {("orders_total", *trace): (0.25, T[1] + 7), ("sizes_bytes", *trace): (3.0, T[0])}
    same(found, wanted, "exemplars")
    metadata = ask("metadata")
    wanted = [{"type": "counter", "help": "Orders, by job.", "unit": "orders"}]
    same(metadata.get("orders_total"), wanted, "metadata of the counter")
    same(metadata.get("sizes_bytes"), [{"type": "histogram", "help": "Sizes.", "unit": "bytes"}], "of the histogram")
    same(metadata.get("goes_away"), [{"type": "gauge", "help": "", "unit": ""}], "of the gauge")
    check_starts(job)


# Jobs, and how their requests are built and sent.
JOBS = {
    "plain": ({}, {}),
    "zstd": ({}, {"encoding": "zstd"}),
    "unpacked": ({"packed": False}, {"path": "/api/v1/push"}),
}
LATE_SYMBOLS = "late symbols"


def whole_requests():
    counts = [5 + 4 + 2 + 1 + 2 * (4 + 2), 4, 2]
    for job, (how_built, how) in JOBS.items():
        sender = everything(job, **how_built)
        # Senders send again what they got no answer for: nothing changes by that.
        for attempt in ("first", "again"):
            status, written, said = sender.send(**how)
            same((status // 100, said), (2, ""), f"{job}, {attempt}")
            # Exemplars that came again may be counted or not.
            wanted = counts if attempt == "first" else [*counts[:2], written[2]]
            same(written, wanted, f"{job}, {attempt}: what was written")
            check_everything(job)
    # Fields may come in any order, so symbols also after what refers to them.
    sender = everything(LATE_SYMBOLS)
    symbols = sender.of["Request"](symbols=sender.request.symbols)
    sender.request.ClearField("symbols")
    raw = sender.request.SerializeToString() + symbols.SerializeToString()
    same(send(raw)[1], counts, "symbols at the end")
    check_everything(LATE_SYMBOLS)
    same(Sender().send()[:2], (204, [0, 0, 0]), "nothing to write")


def refusals():
    raw = Sender().request.SerializeToString()
    for content_type, taken in [
        ("application/x-protobuf;proto=io.prometheus.write.v3.Request", "io.prometheus.write.v2.Request"),
        ("application/json", "application/x-protobuf"),
        ("text/plain", "application/x-protobuf"),
    ]:
        status, written, said = send(raw, content_type=content_type)
        same((status, written), (415, [0, 0, 0]), content_type)
        if taken not in said:
            sys.exit(f"{content_type}: the answer does not say what is taken: {said}")
    same(send(raw, encoding="br")[0], 415, "an unknown encoding")
    same(send(b"\x2a\xff\xff\xff\xff\x0f")[:2], (400, [0, 0, 0]), "not protobuf")
    # Without its name a message is taken for one of the first version, whose fields it has none of.
    sender = Sender()
    sender.series("unnamed_message", samples=[(T[0], 1.0)])
    _, written, _ = sender.send(content_type="application/x-protobuf")
    same(written, [0, 0, 0], "version 2 called 1")
    same(stored("unnamed_message"), [], "version 2 called 1")


def partial_writes():
    def good(sender, name):
        sender.series(name, samples=[(T[0], 1.0), (T[1], 2.0)], exemplars=[(T[0], 1.0, {"trace_id": name})])
        sender.series(f"{name}_sizes", histograms=[{**INTEGERS, "timestamp": T[0]}])

    def no_name(sender):
        sender.request.timeseries.add(labels_refs=sender.refs({"job": "x"})).samples.add(timestamp=T[0], value=1.0)

    def twice_a_label(sender):
        refs = sender.refs({"__name__": "bad", "job": "x"})
        sender.request.timeseries.add(labels_refs=refs + refs[2:]).samples.add(timestamp=T[0], value=1.0)

    def no_symbol(sender):
        refs = [*sender.refs({"__name__": "bad"}), 10_000, 10_001]
        sender.request.timeseries.add(labels_refs=refs).samples.add(timestamp=T[0], value=1.0)

    def half_a_label(sender):
        refs = [*sender.refs({"__name__": "bad"}), 1]
        sender.request.timeseries.add(labels_refs=refs).samples.add(timestamp=T[0], value=1.0)

    def too_old(sender):
        sender.series("bad", samples=[(NOW - 30 * 86_400_000, 1.0)])

    def too_early(sender):
        sender.series("bad", samples=[(NOW + 86_400_000, 1.0)])

    def wrong_buckets(sender):
        sender.series("bad", histograms=[{**INTEGERS, "count_int": 3, "timestamp": T[0]}])

    for bad in (no_name, twice_a_label, no_symbol, half_a_label, too_old, too_early, wrong_buckets):
        sender, name = Sender(), f"beside_{bad.__name__}"
        good(sender, f"{name}_before")
        bad(sender)
        good(sender, f"{name}_after")
        status, written, said = sender.send()
        same((status, written), (400, [4, 2, 2]), f"{bad.__name__} ({said.strip()})")
        if not said.strip():
            sys.exit(f"{bad.__name__}: no reason is told")
        for part in ("before", "after"):
            same(stored(f"{name}_{part}"), [[T[0], "1"], [T[1], "2"]], f"{name}_{part}")
            same(len(stored(f"{name}_{part}_sizes", "histograms")), 1, f"{name}_{part}_sizes")
    same(stored("bad"), [], "what was refused")
    # Another value at a time that has one: told of, and counted where it is the one that is kept, the larger.
    for value, status, written in [(1.0, 204, [1, 0, 0]), (2.0, 400, [1, 0, 0]), (1.5, 400, [0, 0, 0])]:
        sender = Sender()
        sender.series("contradicts", samples=[(T[0], value)])
        same(sender.send()[:2], (status, written), f"contradicts with {value}")
    same(stored("contradicts"), [[T[0], "2"]], "what was contradicted")


if STEP == "send":
    whole_requests()
    refusals()
    partial_writes()
else:
    for job in [*JOBS, LATE_SYMBOLS]:
        check_everything(job)
    same(stored("bad"), [], "what was refused")
