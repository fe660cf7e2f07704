"""What a model is worth: bounds, profiles, entropies, and simple densities beside it."""
