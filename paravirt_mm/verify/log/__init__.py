"""Models of Linux against what kernels printed: ``verify log``.

``words`` has the print formats by release, ``predict`` the lines, ``variants`` what a release
number leaves open, ``check`` compares.
"""
