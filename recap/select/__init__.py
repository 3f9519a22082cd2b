"""A map job that decides which rows to keep, and which of several texts, by rules over columns of scores."""
