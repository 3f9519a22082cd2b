"""A run directory: plan, ledger, published columns, launches."""
