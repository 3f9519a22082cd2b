"""Captioning engines behind one interface (`recap.engine.interface`).

Imports only torch, transformers, numpy, Pillow and safetensors, so that it runs on bare GPU machines.
"""
