"""Weight decay as an exponential learning rate (chapters 2 to 6, 9): schedules, theorems, and the same on an optimizer."""
