"""Training, offline: configurations, data, the fit, its evaluation, and the export of artefacts.

Imports `diffusion`, never `service`; what passes to the service is one file, the artefact.
"""
