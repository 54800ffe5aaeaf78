"""Calling conventions of networks, one small file each: (net, x, t, cond) → output (b, *event).

x is the scaled state, t (b,) the network's own time, cond whatever `null` of the same file makes.
"""
