"""The model itself (paper, Section 3), and nothing of pictures or sound.

transformer.py has the forward pass and the block, fusion.py how portrait and audio reach the frames, layers.py and
attention.py what both are made of, audio_projection.py the audio tokens, latents.py the space that latents are seen in.
checkpoint.py is the file of a model, lora.py small changes to it, official.py the research code's files.
"""
