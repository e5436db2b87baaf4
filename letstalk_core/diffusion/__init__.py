"""Diffusion without the model: objective.py says what is added and what must be answered, samplers.py denoises.

A sampler is given a callable predict(x, t) and never sees what answers it.
"""
