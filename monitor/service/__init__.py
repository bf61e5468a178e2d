"""The monitor process put together.

``monitor``   its loop: messages in, verdicts, decisions, actions, events out
``process``   from its files to its servers and back
``hangup``    SIGHUP: a terminal that is gone, or files that are to be read again
"""
