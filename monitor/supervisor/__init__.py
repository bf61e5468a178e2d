"""vLLM and the monitor as child processes that live and die together (``serving``)."""
