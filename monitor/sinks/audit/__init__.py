"""Audit log: an append-only, hash-chained file of JSON lines that says what was done, and by which rules.

``records``       an event with its context, and what is said of the log itself
``chain``         a record as a line that is sealed to the one before it; lines read back
``file``          the file: one writer, continued where it ended
``log``           the writer, on a thread of its own
``sink``          from the monitor's events to records
``verification``  whether a file is what was written
"""

from monitor.sinks.audit.file import require_log
from monitor.sinks.audit.log import AuditLog
from monitor.sinks.audit.sink import AuditSink
from monitor.sinks.audit.verification import Verified, read_records, verify

__all__ = ["AuditLog", "AuditSink", "Verified", "read_records", "require_log", "verify"]
