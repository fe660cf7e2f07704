"""What each command of `python -m training` does: its arguments in, an exit status out."""
