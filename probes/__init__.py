"""Measurement: concepts, probes, steering vectors, and the bundle that carries them.

This package never imports ``monitor``. :mod:`probes.bundle` and :mod:`probes.scoring.aggregate` need numpy only, so
that the monitor process can read bundles and running verdicts without torch.
"""
