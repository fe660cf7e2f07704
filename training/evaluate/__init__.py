"""Evaluate models: bounds, profiles, entropies, and simple densities for comparison."""
