"""The names by which s3prl finds M2D: `-u m2d`, `-u m2d_local`, `-u m2d_calcnorm`."""

from .expert import StatisticsExpert as _StatisticsExpert
from .expert import UpstreamExpert as _UpstreamExpert


def m2d_local(ckpt: str, **kwargs) -> _UpstreamExpert:
    """A checkpoint, with its own statistics unless norm_mean and norm_std are given."""
    return _UpstreamExpert(ckpt, **kwargs)


def m2d(ckpt: str, **kwargs) -> _UpstreamExpert:
    """A checkpoint and a task's statistics in one text: `ckpt="path,mean,std"`, as `-k` takes it."""
    try:
        path, mean, std = ckpt.rsplit(",", 2)
        mean, std = float(mean), float(std)
    except ValueError:
        raise ValueError(f"-k {ckpt}: expected CHECKPOINT,MEAN,STD; -u m2d_local takes a checkpoint alone") from None
    return _UpstreamExpert(path, norm_mean=mean, norm_std=std, **kwargs)


def m2d_calcnorm(ckpt: str, **kwargs) -> _StatisticsExpert:
    """Measures a task's statistics over 10,000 batches, prints them, and ends the program."""
    return _StatisticsExpert(ckpt, **kwargs)
