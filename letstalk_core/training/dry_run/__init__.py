"""What a training would take, before it begins: parameters, work, memory and time (train --dry-run).

counting.py runs the real modules on tensors without numbers, block_speed.py runs one block for real, requirements.py
adds up what a device has to hold, description.py says it. `describe_training` is all that others need.
"""

from .description import describe_training

__all__ = ["describe_training"]
