"""Many machines through many scenarios: in local processes or on a cluster, into one file.

Parts of the inputs (`paravirt_mm.sources.inputs`) are grouped in chunks; a chunk is what one worker
does at a time and what one transaction stores. `work` is done in a child process of its own, which
can be stopped (`guard`); `drive` keeps an executor busy, whichever it is; `store` is the result: a
DuckDB file that `questions` are asked of.
"""
