"""Data to fit and judge on.

``examples``   labelled conversations
``requests``   requests to score, as JSON lines
``corpus``     what is read of the data, within a token budget
``variants``   the same request in the styles of attackers and of people
``concepts/``  what probes are fitted for
``sources/``   readers of public data sets
"""
