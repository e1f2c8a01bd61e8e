"""Measured, never asserted: what is timed here is written into RESULTS.md by hand, with the machine it was timed on."""
