"""Models of Linux against what its real code did on generated machines: ``verify kernel``."""
