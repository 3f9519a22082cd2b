"""Texts from elsewhere as a column of one's own tars: matched by digest, address, uid or key, with an exact account."""
