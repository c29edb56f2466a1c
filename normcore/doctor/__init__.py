"""The doctor: what a run will do, said before it is run, with the source and the assumption of each statement."""
