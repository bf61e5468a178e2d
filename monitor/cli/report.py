"""Tables of bundles and of benchmarks."""

from rich.table import Table
from rich.text import Text

from monitor.bench.result import Result
from probes.bundle import Bundle


def bundle_table(bundle: Bundle) -> Table:
    """What each probe of a bundle is worth."""
    table = Table(title=Text(f"probes of {bundle.manifest.model.name}"), title_justify="left")
    for column in (
        "probe",
        "layer",
        "reads",
        "threshold",
        "benign fired (95% interval)",
        "AUROC",
        "text alone",
        "recall",
    ):
        table.add_column(column)
    for probe in bundle.probes:
        calibration, evaluation = probe.calibration, probe.evaluation
        low, high = calibration.interval
        table.add_row(
            Text(probe.name),
            str(probe.layer),
            ", ".join(probe.roles),
            f"{probe.threshold:.2f}",
            f"{calibration.fired} of {calibration.benign} ({low:.1%} to {high:.1%})",
            f"{evaluation.auroc:.3f}",
            f"{evaluation.auroc_text:.3f}",
            f"{evaluation.recall:.0%}",
        )
    table.caption = "AUROC against matched negatives, cross-validated by pair; text alone: TF-IDF on the same folds."
    return table


def bench_table(result: Result) -> Table:
    """Stock against tapped."""
    table = Table(title=Text(f"{result.model}, {result.description}"), title_justify="left")
    for column in ("arm", "tokens/s, median", "lowest", "highest"):
        table.add_column(column)
    for arm, rates in result.rates.items():
        ordered = sorted(rates)
        table.add_row(arm, f"{ordered[len(ordered) // 2]:.1f}", f"{ordered[0]:.1f}", f"{ordered[-1]:.1f}")
    low, high = result.interval
    table.caption = (
        f"tapped / stock: {result.ratio:.4f} (95% interval {low:.4f} to {high:.4f}), "
        f"median of {result.pairs} pairs in one run"
    )
    return table
