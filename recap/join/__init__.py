"""A map job that joins texts of other files ("theirs") to one's own samples ("ours") by sha256, uid, url or key, and a
report that counts every row of both sides."""
