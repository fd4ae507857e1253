"""Machines that firmware could have made, from a seed."""

from paravirt_mm.sources.generated import generate as generate
