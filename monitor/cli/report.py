"""Tables of bundles."""

from rich.table import Table
from rich.text import Text

from probes.bundle import Bundle


def bundle_table(bundle: Bundle) -> Table:
    """The figures of each probe of a bundle."""
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
    for probe in bundle.all_probes:
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
    table.caption = (
        "AUROC and recall on data sets (or topics) that the probe was made without, as a mean over them; "
        "text alone: the better of TF-IDF and length on the same."
    )
    return table
