"""Which rows to keep, and which of several texts: rules over columns of scores."""
