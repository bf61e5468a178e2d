"""Models as they are read outside vLLM. Importing this package needs no torch.

``identity``          the digests that a bundle is bound to
``resolve``           names of models to local directories
``chat``              chat templates: conversations to tokens, and the markers around messages
``blocks``            decoder blocks, found by structure
``activations``       the residual stream of conversations, at several layers
``activation_store``  the same on disk, in shards
``teacher_forcing``   how likely a model finds given texts
"""

from probes.models.identity import DEMO, ModelIdentity, cache_directory, identify
from probes.models.resolve import (
    DEMO_GGUF,
    DEMO_PACKAGE,
    Progress,
    no_progress,
    resolve_model,
    unpack_gguf,
)

__all__ = [
    "DEMO",
    "DEMO_GGUF",
    "DEMO_PACKAGE",
    "ModelIdentity",
    "Progress",
    "cache_directory",
    "identify",
    "no_progress",
    "resolve_model",
    "unpack_gguf",
]
