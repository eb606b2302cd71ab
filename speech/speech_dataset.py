"""Earlier name of m2d.data.speech_dataset."""

from m2d.data.speech_dataset import SpeechDataset, mean_of_spans

__all__ = ["SpeechDataset", "mean_of_spans"]
