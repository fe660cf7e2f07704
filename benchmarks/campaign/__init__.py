"""Random valid requests to every route and every served model; see `__main__`."""
