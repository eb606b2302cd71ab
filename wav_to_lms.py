"""Audio files to log-mel spectrograms, the training data of M2D: `python wav_to_lms.py SRC DEST`. See `m2d.cli.convert`."""

import sys

from m2d.audio.log_mel_spec import FFT_parameters, ToLogMelSpec
from m2d.cli.convert import main
from m2d.data.convert_folder import convert_wav

__all__ = ["FFT_parameters", "ToLogMelSpec", "convert_wav", "main"]

if __name__ == "__main__":
    sys.exit(main())
