"""Activations as the served engine itself computes them: a vLLM, tapped without probes, that streams what it reads.

``inbox`` puts the streamed rows of known requests together again; ``source`` starts the engine and asks it.
"""

from monitor.reader.source import VllmSource

__all__ = ["VllmSource"]
