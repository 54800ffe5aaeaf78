"""Around a network, knowing nothing of noise: views, low-rank roles, inputs, taps, heads, EMA."""
