"""What people look at: the HTML report, pictures, and a run told in plain English.

Everything here is derived from runs (their trace and figures) and changes nothing. Drawing charts
and PNG needs the extra ``report``; memory maps and stories need nothing.
"""
