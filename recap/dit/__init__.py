"""Text-to-image: a Diffusion Transformer trained on a mix of captions, and images sampled from it."""
