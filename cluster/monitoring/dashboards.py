"""Grafana's dashboards, each from a few lines; running this file writes `grafana/*.json` anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grafana"

#: Title, unit of Grafana, and queries with their legends; {…} of legends is Grafana's own.
Panel = tuple[str, str, dict[str, str]]


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    """Median, 95th and 99th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return {
        f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[5m])))": f"{legend}{name}"
        for q, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
    }


DASHBOARDS: dict[str, tuple[str, list[Panel]]] = {
    "service": (
        "cryoray: the service",
        [
            (
                "Images a second, by what became of them",
                "short",
                {"sum by (verdict) (rate(cryoray_images_total[1m]))": "{{verdict}}"},
            ),
            (
                "Requests a second, by status",
                "reqps",
                {"sum by (status) (rate(cryoray_requests_total[1m]))": "{{status}}"},
            ),
            ("From a request to its answer", "s", quantiles("cryoray_request_seconds")),
            (
                "Where the time goes",
                "s",
                {
                    "sum by (stage) (rate(cryoray_stage_seconds_sum[5m]))"
                    " / sum by (stage) (rate(cryoray_stage_seconds_count[5m]))": "{{stage}}"
                },
            ),
            (
                "Images that wait, and requests in flight",
                "short",
                {
                    "sum by (ensemble) (cryoray_queued_images)": "wait for {{ensemble}}",
                    "sum(cryoray_requests_in_flight)": "requests",
                },
            ),
            (
                "How full batches are",
                "percentunit",
                {
                    "sum(rate(cryoray_batch_fill_sum[5m])) / sum(rate(cryoray_batch_fill_count[5m]))": "mean"
                },
            ),
            ("Kept, lately", "percentunit", {"cryoray_keep_rate": "{{ensemble}}"}),
            (
                "d1 and d2 disagree, lately",
                "percentunit",
                {"cryoray_disagreement_rate": "{{ensemble}}"},
            ),
            (
                "d3 asked, a second",
                "short",
                {"sum by (ensemble) (rate(cryoray_disagreements_total[5m]))": "{{ensemble}}"},
            ),
            (
                "Replicas lost",
                "short",
                {"sum(increase(cryoray_replicas_lost_total[30m]))": "in 30 minutes"},
            ),
            (
                "Judged by the shadow, images a second",
                "short",
                {
                    "sum by (ensemble) (rate(cryoray_shadow_images_total[10m]))": "{{ensemble}}",
                    "sum(rate(cryoray_shadow_skipped_total[10m]))": "no time",
                    "sum(rate(cryoray_shadow_failed_total[10m]))": "failed",
                },
            ),
        ],
    ),
    "session": (
        "cryoray: sessions",
        [
            ("Open sessions", "short", {"sum(cryoray_sessions_open)": "open"}),
            (
                "Images of open sessions",
                "short",
                {"sum by (fate) (cryoray_session_images)": "{{fate}}"},
            ),
            (
                "Images a minute",
                "short",
                {"sum by (fate) (deriv(cryoray_session_images[10m])) * 60": "{{fate}}"},
            ),
            (
                "Stacks of open sessions",
                "short",
                {"sum by (state) (cryoray_session_stacks)": "{{state}}"},
            ),
            (
                "Silence of the most silent watcher",
                "s",
                {"max(cryoray_session_silent_seconds)": "seconds"},
            ),
        ],
    ),
    "ingest": (
        "cryoray: ingestion",
        [
            (
                "Rows a second",
                "short",
                {"sum by (set) (rate(ray_cryoray_ingest_rows_total[1m]))": "{{set}}"},
            ),
            (
                "Raw bytes a second",
                "Bps",
                {"sum by (set) (rate(ray_cryoray_ingest_bytes_total[1m]))": "{{set}}"},
            ),
            (
                "Quarantined rows",
                "short",
                {"sum by (set) (ray_cryoray_ingest_quarantined_total)": "{{set}}"},
            ),
            (
                "Processors in use",
                "short",
                {
                    "sum by (instance) (ray_node_cpu_utilization * ray_node_cpu_count / 100)": "{{instance}}"
                },
            ),
            (
                "Objects, by where they are",
                "bytes",
                {"sum by (Location) (ray_object_store_memory)": "{{Location}}"},
            ),
            (
                "Read from disk",
                "Bps",
                {"sum by (instance) (ray_node_disk_io_read_speed)": "{{instance}}"},
            ),
        ],
    ),
    "training": (
        "cryoray: training",
        [
            (
                "State of the trainings",
                "short",
                {
                    "sum by (ray_train_run_name, ray_train_controller_state) (ray_train_controller_state)": (
                        "{{ray_train_run_name}} {{ray_train_controller_state}}"
                    )
                },
            ),
            (
                "GPUs in use",
                "percent",
                {"ray_node_gpus_utilization": "{{instance}} {{GpuIndex}}"},
            ),
            (
                "GPU memory in use, MiB",
                "short",
                {"ray_node_gram_used": "{{instance}} {{GpuIndex}}"},
            ),
            ("Memory in use", "bytes", {"sum by (instance) (ray_node_mem_used)": "{{instance}}"}),
            (
                "Workers blocked while they report",
                "s",
                {
                    "sum by (ray_train_run_name) (ray_train_report_total_blocked_time_s)": (
                        "{{ray_train_run_name}}"
                    )
                },
            ),
        ],
    ),
}


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard, as Grafana imports it: panels in two columns."""
    title, panels = DASHBOARDS[name]
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "uid": f"cryoray-{name}",
        "title": title,
        "tags": ["cryoray"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                }
            ]
        },
        "panels": [
            {
                "id": number + 1,
                "title": heading,
                "type": "timeseries",
                "datasource": source,
                "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
                "targets": [
                    {
                        "refId": chr(65 + at),
                        "datasource": source,
                        "expr": query,
                        "legendFormat": legend,
                    }
                    for at, (query, legend) in enumerate(queries.items())
                ],
            }
            for number, (heading, unit, queries) in enumerate(panels)
        ],
    }


def text(name: str) -> str:
    """The file of a dashboard."""
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(text(each), encoding="utf-8")
