"""One run: memblock, the direct-map builder, page tables, the page-status ledger, the trace."""
