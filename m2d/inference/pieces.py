"""How an input of any length is cut into pieces that a model encodes one by one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cutting:
    """The rule by which a spectrogram is cut along time.

    Inputs longer than the model's are cut into pieces of its length. What remains at the end is padded to a whole patch and
    becomes a piece of its own. (A length that is no multiple of the patch, such as 1001 frames of 16, can leave fewer
    frames than a patch: these are not encoded.)

    Attributes:
        unit: frames of the model's input.
        patch: frames of a patch.
        pads_short: also pad an input shorter than `unit` to a whole patch. Otherwise the frames behind its last whole patch
            are not encoded, which is the published rule where `dur_frames` is set.
    """

    unit: int
    patch: int
    pads_short: bool = True

    def lengths(self, frames: int, done: int = 0) -> list[int]:
        """Frames of each piece of an input of `frames` frames, padding included, without the first `done`, which are whole."""
        if not self.pads_short and self.patch <= frames < self.unit:
            return [frames // self.patch * self.patch]
        padded = frames + (self.patch - frames % self.unit % self.patch) % self.patch
        whole, rest = divmod(padded, self.unit)
        return [self.unit] * (whole - done) + ([rest] if rest >= self.patch else [])

    def groups(self, frames: int, most: int) -> list[tuple[int, int, int]]:
        """Stretches of at most `most` pieces of equal length, as (start frame, stop frame, frames of a piece)."""
        lengths = self.lengths(frames)
        whole, stretch = lengths.count(self.unit) * self.unit, self.unit * most
        groups = [(start, min(start + stretch, whole), self.unit) for start in range(0, whole, stretch)]
        return groups if lengths[-1] == self.unit else [*groups, (whole, whole + lengths[-1], lengths[-1])]

    def steps(self, frames: int) -> int:
        """Time steps of an input of `frames` frames."""
        return sum(length // self.patch for length in self.lengths(frames))

    def step_start(self, step: int) -> int:
        """The first frame of a time step's patches."""
        piece, place = divmod(step, self.unit // self.patch)
        return piece * self.unit + place * self.patch
