"""The monitor process put together.

``monitor``   its loop: messages in, verdicts, decisions, actions, events out
``config``    its settings, one value
``inputs``    the files that these name, read and held against each other
``process``   from its configuration to its servers and back
``hangup``    SIGHUP: a terminal that is gone, or files that are to be read again
"""
