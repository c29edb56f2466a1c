"""Models small enough for theory: one layer, a valley, a stochastic differential equation."""
