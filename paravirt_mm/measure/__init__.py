"""Figures, each defined once and derived from the trace alone."""
