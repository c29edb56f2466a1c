"""The equilibrium of a normalized net (chapters 10 to 14): rates, equilibrium, relaxation, and a monitor of them."""
