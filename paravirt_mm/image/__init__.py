"""Page tables as bytes: making them from a trace, writing and reading dumps, walking and
inspecting them.
"""
