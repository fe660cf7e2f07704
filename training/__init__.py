"""Offline training: configurations, data sets, fitting, evaluation, and export of artefacts.

Imports `diffusion`, never `service`; the service gets a model as one file, the artefact.
"""
