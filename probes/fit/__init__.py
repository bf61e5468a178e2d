"""Fitting: from a model to a bundle.

``bundle_fit``          the whole of it
``material``            everything that is read of the model, on disk
``concept_fit``         one concept to its probe
``linear``              linear probes: how they are fitted and read
``multimax_network``, ``multimax_training``   the network with attention heads
``selection``           layer, form and penalty, chosen on left-out data
``held_out``            what a probe is worth on data that it was made without
``controls``            random labels, random directions, calibrated probability
``demo``                the bundle of the demo model
"""
