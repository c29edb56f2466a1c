"""Nets, among them some that are exactly scale-invariant."""
