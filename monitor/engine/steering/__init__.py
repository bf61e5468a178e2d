"""Steering of requests, inside the engine.

``acts``      what an act of an order means for a bundle
``caps``      whether orders and gates together stay within the caps
``table``     the steering tables of the taps
``leases``    orders that end by themselves
``refusals``  orders that are not carried out
``guard``     the degeneration guard
"""
