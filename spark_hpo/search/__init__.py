"""Pure decisions: the space, samplers that propose, schedulers that spend. No I/O, no clock, no torch."""
