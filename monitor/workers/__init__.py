"""Probe workers: processes that run the probes which are more than a direction, on activations that engines stream.

``reading``   frames to jobs, answers to verdicts
``pool``      some workers, kept alive; what waits for them is bounded
``process``   one worker, as the monitor holds it
``messages``  what travels between the monitor and a worker
``worker``    the worker's process
``scoring``   jobs to answers, inside it
``rings``     the activations that it has open

Nothing of it is imported where no probe needs it.
"""

from monitor.workers.pool import WorkerPool
from monitor.workers.reading import News, ProbeWorkers

__all__ = ["News", "ProbeWorkers", "WorkerPool"]
