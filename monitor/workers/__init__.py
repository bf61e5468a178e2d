"""Probe workers: processes that run the probes which are more than a direction, on activations that engines stream.

``reading``   frames to jobs, answers to verdicts
``pool``      some workers, kept alive; what waits for them is bounded
``process``   one worker, as the monitor holds it
``messages``  what travels between the monitor and a worker
``worker``    the worker's process
``scoring``   jobs to answers, inside it
``rings``     the activations that it has open

What may be wrong, and what notices:

* the states are not those of the fit: the engine's self-test (``monitor.engine.canary_run``)
* a worker has other weights: it does not start with a bundle of another digest
* tokens are not scored: they are counted, by reason
* a state is taken for another token's: nothing does at run time; frames say whose it is, and tests compare

Nothing of it is imported where no probe needs it.
"""

from monitor.workers.pool import WorkerPool
from monitor.workers.reading import News, ProbeWorkers

__all__ = ["News", "ProbeWorkers", "WorkerPool"]
