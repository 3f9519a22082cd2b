"""Reading web-scale image data: shard lists, and tars that may be damaged."""
