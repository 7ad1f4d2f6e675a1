"""Measures a little with OpenTelemetry's SDK and exports it: <protocol> <temporality> <address>."""

import sys

from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import (
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource

protocol, temporality, address = sys.argv[1:]
of_kind = {
    kind: AggregationTemporality[temporality] for kind in (Counter, Histogram)
}
if protocol == "grpc":
    from grpc import Compression
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
        OTLPMetricExporter,
    )

    exporter = OTLPMetricExporter(
        endpoint=address,
        insecure=True,
        headers=(("x-scope-orgid", "team"),),
        compression=Compression.Gzip,
        preferred_temporality=of_kind,
    )
else:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
        OTLPMetricExporter,
    )

    exporter = OTLPMetricExporter(
        endpoint=f"http://{address}/otlp/v1/metrics",
        headers={"X-Scope-OrgID": "team"},
        compression=Compression.Gzip,
        preferred_temporality=of_kind,
    )

reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
resource = Resource.create(
    {
        "service.namespace": "shop",
        "service.name": "cart",
        "service.instance.id": f"{protocol}-{temporality}",
        "deployment.environment": "test",
    }
)
views = [
    View(instrument_name="sizes", aggregation=ExponentialBucketHistogramAggregation())
]
provider = MeterProvider(metric_readers=[reader], resource=resource, views=views)
meter = provider.get_meter("with_opentelemetry", "1.0")

orders = meter.create_counter("shop.orders", unit="{order}", description="Orders.")
duration = meter.create_histogram("request.duration", unit="s")
sizes = meter.create_histogram("sizes", unit="By")
basket = meter.create_up_down_counter("basket.items")
for _ in range(3):
    orders.add(2, {"payment.kind": "card"})
    duration.record(0.3)
    sizes.record(1000.0)
    basket.add(-1)
    if not provider.force_flush():
        sys.exit("not exported")
provider.shutdown()
