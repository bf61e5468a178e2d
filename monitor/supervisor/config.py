"""The one configuration: a tapped server and its monitor, which is the section ``monitor`` of it.

Both ``plumbob serve`` and ``plumbob monitor`` read the same file and the same variables; the monitor alone uses its
section. Values made in code are what the code says: only :func:`load` looks at files and the environment.
"""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from monitor.addresses import join_address
from monitor.configuration import (
    Argument,
    Effective,
    Flag,
    Layer,
    OptionalPath,
    Port,
    combine,
    from_environment,
    from_file,
)
from monitor.service.config import MonitorConfig
from monitor.supervisor.vllm_arguments import refuse_secrets
from probes.bundle.shipped import shipped_bundle
from probes.models import DEMO

API_PORT: Final = 8000


class Drift(StrEnum):
    """The ways to meet scores of an engine that are not the bundle's."""

    REFUSE = "refuse"
    SHADOW = "shadow"
    """Serve, and enforce nothing on what they say."""


class ServeConfig(BaseSettings):
    """The settings of a tapped server with its monitor."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    exclusive: ClassVar[tuple[tuple[str, str], ...]] = (("api_key", "api_key_file"),)

    model: Annotated[str, Argument("MODEL")]
    """A Hugging Face id, a local directory, or: demo."""
    host: Annotated[str, Flag()] = "127.0.0.1"
    """Interface that the OpenAI-compatible API listens on; metrics and gRPC have their own."""
    port: Annotated[Port, Flag()] = API_PORT
    """TCP port of the OpenAI-compatible API."""
    eager: Annotated[bool, Flag()] = False
    """Do not compile: starts sooner, decodes slower on a GPU."""
    allow_untested: Annotated[bool, Flag()] = False
    """Start on a vLLM version the tap was not tested on."""
    on_drift: Annotated[Drift, Flag()] = Drift.REFUSE
    """Refuse to start, or serve in shadow, where the self-test finds scores that are not the bundle's."""
    allow_steering: Annotated[tuple[str, ...], Flag(metavar="VECTOR")] = ()
    """Vector that requests may ask to be steered by, within its cap."""
    guard: Annotated[bool, Flag()] = True
    """Steer an answer no more where it repeats itself."""
    api_key: SecretStr | None = None
    """Key that clients of the API must send; no flag, which the process list would show."""
    api_key_file: Annotated[OptionalPath, Flag(metavar="FILE")] = None
    """File that holds the key that clients of the API must send, and nothing else."""
    vllm_arguments: Annotated[tuple[str, ...], AfterValidator(refuse_secrets)] = ()
    """Further arguments of vllm serve; those of the command line come after them."""
    monitor_required: Annotated[bool, Flag()] = True
    """End where the monitor has died and says that it cannot start; else serve on without it, and go on trying."""
    monitor: MonitorConfig
    """The monitor beside it."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take a value made in code for what it says, whatever the environment is."""
        return (init_settings,)

    @property
    def served_name(self) -> str:
        """The name that clients write as ``model``."""
        path = Path(self.model)
        return path.resolve().name if self.model != DEMO and path.is_dir() else self.model

    @property
    def url(self) -> str:
        """Address of the OpenAI-compatible API."""
        return f"http://{join_address(self.host, self.port)}"


def load(file: Path | None, flags: Iterable[Layer] = ()) -> Effective:
    """Read all sources: the file, if there is one, this process's environment, and flags.

    Where none of them names a bundle, and the model is ``demo`` or not named (the monitor alone), it is the one that
    ships.

    Raises:
        ConfigError: A source cannot be read, or names what is no setting; the line begins with the source.
    """
    layers = [*([] if file is None else [from_file(ServeConfig, file)]), *from_environment(ServeConfig), *flags]
    given = combine(ServeConfig, layers)
    shipped = shipped_bundle(str(given.values.get("model", DEMO)))
    if shipped is None or ("monitor", "bundle") in given.sources:
        return given
    return combine(ServeConfig, [Layer("package", "plumbob", {"monitor": {"bundle": shipped}}), *layers])
