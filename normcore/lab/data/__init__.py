"""Data sets resident in memory, their batches and splits."""
