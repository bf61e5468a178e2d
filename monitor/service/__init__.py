"""The monitor process put together.

``monitor``   its loop: messages in, verdicts, decisions, actions, events out
``config``    its settings, one value
``inputs``    the files that these name, read and held against each other
``process``   from its configuration to its servers and back
``awaiting``  says that no engine has come
``series``    what a policy's rules will count, before they do
``hangup``    SIGHUP: a terminal that is gone, or files that are to be read again
"""
