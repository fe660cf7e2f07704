"""Random valid requests of every route against every model that is served; see `__main__`."""
