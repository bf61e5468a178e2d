"""Messages and stubs of ``proto/monitor/v1``, generated: see the header of each module."""
