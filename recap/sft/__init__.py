"""Supervised fine-tuning of captioners with LLaVA-1.5's architecture, in the paper's stages, by the toolkit's own
trainer.

python -m recap.sft.assemble --vision V --language L --template llama-3 OUT     stage 0: a model to start from
python -m recap.sft.convert ORIGINAL OUT --vision V                            or an original LLaVA checkpoint
python -m recap.sft.inspect configs/sft/align.yaml                             shows rendered training samples
python -m hpc.launch configs/sft/align.yaml                                    stage 1; then instruct, hqedit
python -m recap.sft.export RUN OUT                                             any checkpoint, for others to load
"""
