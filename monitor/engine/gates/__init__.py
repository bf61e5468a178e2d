"""Gates from the host's side: hosting (``host``), compiling orders to numbers (``compiling``), ``history``."""
