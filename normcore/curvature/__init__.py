"""Curvature that can be trusted: Hessian and NTK, their largest eigenvalues."""
