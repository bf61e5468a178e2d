"""Reports of probes and of steering as an auditor reads them: JSON, and a page of HTML."""

from probes.evaluation.conclusions import NO_EVIDENCE, concluded, sentences
from probes.evaluation.results import (
    AtRate,
    Baseline,
    Causal,
    Controls,
    Given,
    Heatmap,
    Histogram,
    ProbeReport,
    Rate,
    Reliability,
    Report,
    Roc,
    Split,
    SplitKind,
    SweepPoint,
)
from probes.report.files import HTML, JSON, ReportError, read, write
from probes.report.page import render
from probes.report.templating import require_renderer

__all__ = [
    "HTML",
    "JSON",
    "NO_EVIDENCE",
    "AtRate",
    "Baseline",
    "Causal",
    "Controls",
    "Given",
    "Heatmap",
    "Histogram",
    "ProbeReport",
    "Rate",
    "Reliability",
    "Report",
    "ReportError",
    "Roc",
    "Split",
    "SplitKind",
    "SweepPoint",
    "concluded",
    "read",
    "render",
    "require_renderer",
    "sentences",
    "write",
]
