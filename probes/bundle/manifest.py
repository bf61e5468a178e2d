"""The types of ``bundle.json``: the model that a bundle belongs to, its probes and vectors, and their evidence."""

from typing import Annotated, Final

import msgspec

from probes.errors import BundleError
from probes.models.identity import ModelIdentity
from probes.scoring.aggregate import Aggregate
from probes.scoring.roles import Markers, Role

FORMAT: Final = 2


class Slice(msgspec.Struct, frozen=True):
    """One kind of benign traffic, and what the probe's threshold does to it."""

    name: str
    """``source=NAME``, ``length=17-32`` (tokens that the probe reads), or a kind that the data name."""
    benign: int
    """Benign requests of this kind."""
    fired: int
    """Number of them that reach the probe's threshold."""
    threshold: float | None
    """The threshold that this kind alone would set; ``None`` where too few of its requests have a verdict."""
    interval: tuple[float, float]
    """95% Clopper–Pearson interval of the rate that they show at the probe's threshold."""
    certified: bool
    """They are enough to show the rate; if not, the kind has no say in the probe's threshold."""


class Calibration(msgspec.Struct, frozen=True):
    """Evidence of a threshold."""

    false_positive_rate: float
    """The rate a request that the threshold was set for."""
    benign: int
    """Held-back benign requests that it was set on."""
    fired: int
    """Number of them that reach the threshold."""
    interval: tuple[float, float]
    """95% Clopper–Pearson interval of the rate that they show."""
    slices: list[Slice] = []
    """The same for each kind of traffic; kinds overlap."""


class Evaluation(msgspec.Struct, frozen=True):
    """Figures of a probe on data sets that it was made without, as a mean over them; the report has all of it."""

    positives: int
    """Examples that show the concept, of all sets together."""
    negatives: int
    """Examples that do not, the benign requests excepted."""
    auroc: float
    """Area under the ROC curve."""
    auroc_text: float
    """The same of the better one of two baselines: TF-IDF with logistic regression, and length."""
    recall: float
    """Share of positives that reach the threshold."""


class Probability(msgspec.Struct, frozen=True):
    """probability = sigmoid(scale · score + offset), for the mixture of examples that it was fitted on (Platt 1999)."""

    scale: float
    offset: float
    ece: float
    """Expected calibration error on examples that neither it nor the probe was fitted on."""


class Provenance(msgspec.Struct, frozen=True):
    """The origin of examples."""

    source: str
    """The set: the name of its folder, or ``shipped``."""
    licence: str
    """As the set states it."""
    files: dict[str, str]
    """Each file read, as it is named on disk, to the SHA-256 of its bytes."""
    rows: int
    """Records in these files, before any is left out."""


class Probe(msgspec.Struct, frozen=True):
    """A reader of the residual stream; what it gives a token is a score in logits."""

    name: str
    layer: int
    """It reads the output of block ``layer``, counted from 0."""
    roles: list[str]
    """Roles of the tokens it reads, names of :class:`probes.scoring.roles.Role` in lower case."""
    threshold: float
    """The aggregate at which it fires, in logits."""
    aggregate: Aggregate
    calibration: Calibration
    evaluation: Evaluation
    definition: str = ""
    """Meaning of a high score, and what it does not mean."""
    kind: str = "logistic"
    """Way of fitting, one of :data:`probes.fit.linear.Kind`; or ``multimax``, and it is one of the worker probes."""
    probability: Probability | None = None
    """Of the aggregate; ``None`` where there was too little to fit it on."""

    def reads(self, role: Role) -> bool:
        """Say whether the probe reads tokens of this role: one of the user's tokens reads those of tools as well."""
        return role.name.lower() in self.roles or (role is Role.TOOL and Role.USER.name.lower() in self.roles)


class Vector(msgspec.Struct, frozen=True):
    """A steering vector: a direction at a layer, of unit norm, pointing to more of the concept."""

    name: str
    layer: int
    """It is added to the output of block ``layer``, counted from 0."""
    hidden_norm: float
    """Median norm of the residual stream of that layer over response tokens; the unit of dose."""
    method: str = "mean"
    """Way of making, one of :data:`probes.steering.extraction.Method`."""
    origin: str = ""
    """Origin: a concept's pairs, a probe, an expression, or a file with its SHA-256."""
    max_dose: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """The cap: the largest dose, either way, that may be ordered; ``None`` where no sweep has set one."""
    working: tuple[float, float] | None = None
    """The lowest and the highest dose of the range around 0 in which the sweep found ordinary text unharmed."""

    def require_dose(self, strength: float) -> None:
        """Check a dose against the cap.

        Args:
            strength: A dose, or the strength of an operation.

        Raises:
            BundleError: It is beyond the cap.
        """
        # A NaN is not below it either.
        if self.max_dose is not None and not abs(strength) <= self.max_dose:
            raise BundleError(
                f"A dose of {strength:g} of vector '{self.name}' is over the bundle's cap of {self.max_dose:g}.",
                f"Order a dose from {-self.max_dose:g} to {self.max_dose:g}.",
            )

    def require_cap(self) -> None:
        """Check that there is a cap, without which no request may choose a dose.

        Raises:
            BundleError: There is none.
        """
        if self.max_dose is None:
            raise BundleError(
                f"Requests may not choose vector '{self.name}': the bundle has no cap on its dose.",
                "Measure one with: plumbob steer calibrate.",
            )

    def coefficient(self, dose: float) -> float:
        """Compute the factor of the unit vector that makes its norm ``dose`` times the residual stream's."""
        return dose * self.hidden_norm


class Manifest(msgspec.Struct, frozen=True):
    """``bundle.json``."""

    format: int
    plumbob: str
    """Version that wrote it."""
    created: str
    """UTC, ISO 8601."""
    model: ModelIdentity
    markers: Markers
    probes: list[Probe]
    """Linear ones, score = weight · state + bias, in the order of the columns of scores: sorted by layer."""
    vectors: list[Vector]
    """Sorted by layer."""
    tensors_sha256: str
    files: dict[str, str] = {}
    """Further files of the bundle, such as its report, to the SHA-256 of their bytes."""
    provenance: dict[str, list[Provenance]] = {}
    """Data that each probe, and ``benign``, were made from."""
    worker_probes: list[Probe] = []
    """Those that are more than a direction, and read streamed activations outside the engine; sorted by layer."""
