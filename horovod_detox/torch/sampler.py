"""Which samples a rank trains on."""

from torch.utils.data import Dataset, DistributedSampler

from horovod_detox.torch.context import context


class GroupSampler(DistributedSampler):
    """Deal the samples to the groups: the same inside a group, disjoint across groups.

    Use it as `torch.utils.data.DistributedSampler`, with `set_epoch` before every epoch.

    Args:
        dataset: a dataset of known length.
        shuffle: deal in a new random order in every epoch.
        seed: seeds the order; the same on every rank.
        drop_last: drop the samples that cannot be dealt evenly instead of repeating some.
    """

    def __init__(
        self, dataset: Dataset, shuffle: bool = True, seed: int = 0, drop_last: bool = False
    ) -> None:
        super().__init__(
            dataset,
            num_replicas=context.num_groups(),
            rank=context.group(),
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
