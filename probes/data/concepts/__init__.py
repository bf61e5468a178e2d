"""Concepts: what a probe is to read, whose tokens it reads, and the contrast data that teaches it.

A concept's data are pairs of conversations, alike in topic, words, style and length, that differ in the concept; the
probe is taught on the last message of each. ``benign`` are ordinary requests, on which thresholds are set. Two more
concepts, for models large enough to have them, are files beside this one: ``sandbagging.yaml`` and
``situational_awareness.yaml``.
"""

from typing import Final

from probes.data.concepts import deception, harmful_intent, refusal, sycophancy, toxicity
from probes.data.concepts.concept import Concept, benign_path, load_benign, load_concept

CONCEPTS: Final = (
    harmful_intent.CONCEPT,
    refusal.CONCEPT,
    toxicity.CONCEPT,
    sycophancy.CONCEPT,
    *deception.CONCEPTS,
)
"""The concepts that ship, in the order in which they are fitted."""

__all__ = ["CONCEPTS", "Concept", "benign_path", "load_benign", "load_concept"]
