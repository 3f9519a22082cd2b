"""CLIP: training on a mix of original and new captions, evaluation, and exchange of weights with other libraries."""
