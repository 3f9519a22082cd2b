"""CLIP: trained on a mix of original and new captions, evaluated, and exchanged with other libraries."""
