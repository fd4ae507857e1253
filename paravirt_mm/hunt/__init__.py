"""Hunting: search memory maps for one on which a condition holds, and make it as small as it gets.

========== =====================================================================================
condition  what is looked for, parsed from text and never evaluated as Python
account    what many runs came to, for those who find nothing
facts      what can be asked of a machine, and how a machine comes to have so much of it
edits      small changes of a machine, such as firmware makes
search     batches of tries: generated machines, changed real ones, and the nearest so far
shrink     the smallest machine on which something still holds
found      what was found, as text, machine file and pytest case
========== =====================================================================================
"""
