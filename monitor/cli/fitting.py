"""``plumbob fit``: its options."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from monitor import __version__
from monitor.cli.console import out, print_table, progress
from monitor.cli.offline import ReadBy, open_reader
from monitor.cli.parameters import Model, Untested


def fit(
    model: Model,
    bundle: Annotated[
        Path, typer.Option("--out", "-o", help="Directory of the bundle; an earlier bundle is replaced.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Directory of public data sets; without it, what ships with Plumbob is all there is."),
    ] = None,
    concept: Annotated[
        list[Path] | None,
        typer.Option("--concept", "-c", help="Fit this concept file instead of what ships; may be repeated."),
    ] = None,
    false_positive_rate: Annotated[
        float,
        typer.Option("--fpr", min=0.0001, max=0.5, help="Share of benign requests on which a probe may fire."),
    ] = 0.01,
    tokens: Annotated[
        int | None, typer.Option(min=10_000, help="Tokens to read at most; fewer are faster, and worth less.")
    ] = None,
    reader: Annotated[
        ReadBy, typer.Option(help="What reads the model and lets it answer: vllm is the tapped engine itself.")
    ] = ReadBy.TRANSFORMERS,
    allow_untested: Untested = False,
) -> None:
    """Fit probes and steering vectors to a model, set their thresholds, evaluate them, and write a bundle.

    What was read is kept beside the bundle until it is written: interrupted, the same command goes on where it was.
    """
    from monitor.cli.report import bundle_table
    from probes.data.concepts import CONCEPTS, load_concept
    from probes.fit.bundle_fit import TOKENS, fit_bundle

    # Its warnings would stand between the progress and the error that says the same in one line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    opens = open_reader(reader, allow_untested=allow_untested)
    concepts = [load_concept(path) for path in concept] if concept else CONCEPTS
    with progress() as report:
        fitted = fit_bundle(
            model,
            bundle,
            version=__version__,
            data=data,
            concepts=concepts,
            false_positive_rate=false_positive_rate,
            tokens=tokens or TOKENS,
            command=" ".join(["plumbob", *sys.argv[1:]]),
            reader=opens,
            progress=report,
        )
    print_table(bundle_table(fitted))
    out.print(Text(f"bundle {fitted.path} ({fitted.digest[:12]}); its report: {fitted.path / 'report.html'}"))
