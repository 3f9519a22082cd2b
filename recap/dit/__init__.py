"""Text-to-image: a Diffusion Transformer that is trained on a mix of captions, and sampling of images from it."""
