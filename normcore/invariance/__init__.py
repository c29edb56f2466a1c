"""What a net forgets (chapter 1): scale invariance measured, degrees of homogeneity, parameter groups."""
