"""The papers' own runs behind one command, each stored with its provenance."""
