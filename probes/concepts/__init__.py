"""Concepts: what a probe is to read, whose tokens it reads, and the contrast data that teaches it.

A concept's data are pairs of conversations, alike in topic, words, style and length, that differ in the concept; the
probe is taught on the last message of each. ``benign`` are ordinary requests, on which thresholds are set.
"""

from probes.concepts._concept import CONCEPTS, Benign, Concept, Pair, benign_path, load_benign

__all__ = ["CONCEPTS", "Benign", "Concept", "Pair", "benign_path", "load_benign"]
