"""Readers for workers that are to fail: what a state's second element says is done before it is scored."""

import os
import time

import numpy as np

from monitor.workers.worker import Readers
from probes.bundle import Bundle

RAISE, SLEEP, EXIT, SHAPE = -1.0, -2.0, -3.0, -4.0


class Summing:
    """The score of a token is the sum of the first elements of all states so far: it shows what was forgotten."""

    def begin(self) -> list[float]:
        return [0.0]

    def scores(self, states: np.ndarray, carry: list[float], /) -> np.ndarray:
        for state in states:
            if state[1] == RAISE:
                raise ArithmeticError("a probe that fails")
            if state[1] == SLEEP:
                time.sleep(float(state[2]))
            if state[1] == EXIT:
                os._exit(3)
            if state[1] == SHAPE:
                return np.zeros((len(states), 2))
        sums = carry[0] + np.cumsum(states[:, 0], dtype=np.float64)
        carry[0] = float(sums[-1])
        return sums


def summing(bundle: Bundle) -> Readers:
    return [(worker.probe, Summing()) for worker in bundle.worker_probes]


def too_few(bundle: Bundle) -> Readers:
    return summing(bundle)[:-1]


def broken(bundle: Bundle) -> Readers:
    raise RuntimeError("these readers cannot be loaded")
