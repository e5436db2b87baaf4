"""Footage: videos of people who speak, prepared once and read at random in training (docs/data.md).

preparation/ turns videos into shards, with the timing and cropping of frames.py and the conditions of stretches.py;
shard_writer.py writes the shards (tar files of stretches), shard_index.py finds their members again, shards.py makes
training examples of them.
"""
