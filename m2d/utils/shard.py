"""Work that several machines share, each doing a part."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Which part of a work is done here, by one of several machines: part `number` of `count`, from 1 on.

    Raises:
        ValueError: there is no such part.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"of {self.count} shards the first is 1/{self.count}, the last {self.count}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """ "2/4" as the second of four.

        Raises:
            ValueError: it is something else.
        """
        try:
            number, count = map(int, text.split("/"))
        except ValueError:
            raise ValueError("expected i/n such as 2/4") from None
        return cls(number, count)

    def of(self, size: int) -> range:
        """Its part of `size` items: items one after the other, so that what lies together is read together."""
        return range(size * (self.number - 1) // self.count, size * self.number // self.count)

    def takes(self, i: int) -> bool:
        """Whether it does the i-th of pieces that each are large: alternating with the others."""
        return i % self.count == self.number - 1

    def name(self, stem: str, suffix: str) -> str:
        """The name of a file of this shard's own; of the only shard "stem.suffix"."""
        return f"{stem}{suffix}" if self.count == 1 else f"{stem}-{self.number}-of-{self.count}{suffix}"


#: The only shard.
WHOLE = Shard()


def shard_of(text: str) -> Shard:
    """The value of --shard: "2/4" is the second of four."""
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
