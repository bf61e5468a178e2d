"""Thresholds as false-positive rates (``thresholds``)."""
