"""M2D: Masked Modeling Duo, self-supervised pre-training of audio encoders."""

__version__ = "0.1.0"
