"""The equilibrium of a normalized net (chapters 10 to 13): rates, equilibrium, relaxation, and a monitor of them."""
