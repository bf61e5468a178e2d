"""Models as they are read outside vLLM. Importing this package needs no torch.

``identity``          the digests that a bundle is bound to
``resolve``           names of models to local directories
``chat``              chat templates: conversations to tokens, and the markers around messages
``loading``           models and tokenizers by transformers
``blocks``            decoder blocks, found by structure
``sites``             addresses inside a decoder; ``site_map`` which of them a model has, and why not others
``hooked``            a decoder of any family, read and written at its sites; ``batches`` is what it is given,
                      ``hooks``, ``attention``, ``writers`` and ``structure`` are what it is made of
``contributions``     the residual stream, taken apart into what was written to it
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
