"""Many small nets trained side by side."""
