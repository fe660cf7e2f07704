"""Likelihoods: the variational bound, its estimators and their errors, and held-out references."""
