"""Search: spaces, samplers, schedulers and explorers. Pure: no I/O, no clock, no torch."""
