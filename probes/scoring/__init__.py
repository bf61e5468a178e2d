"""Scores to verdicts, as numbers: roles, aggregates, forms of probes. Needs numpy only.

``roles``         who wrote each token
``aggregate``     the running verdict of a request
``forms``         the forms of linear probes
``multimax``      a small network with attention heads, read in numpy
``token_reader``  the seam for probes that are more than a direction
``intervals``     confidence intervals of proportions
"""
