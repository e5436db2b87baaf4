"""Training of transformers (train.py) and autoencoders (train_autoencoder.py), stopped and resumed at will.

training_config.py and config_file.py: the settings. build.py and initialise.py: the model to begin with. sources.py and
examples.py: the data, in batches. transformer_loss.py and reconstruction.py: the losses. loop.py, checkpoints.py and
stopping.py: the steps. fitting.py and export.py: from the steps to the finished file. bundled/: the models that this
repository ships. dry_run/: what a training would take.
"""
