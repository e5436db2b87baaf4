"""The command line with FSDP on CPUs: accelerate shards on accelerators only, so its state is told after the fact.

ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m tests.sharded_on_cpu train ...
"""

import sys

from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from letstalk_core.cli import main
from letstalk_core.training import loop, train

usual = loop.make_accelerator


def make_sharded(config, folder):
    accelerator = usual(config, folder)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["Block"],
        reshard_after_forward=True, state_dict_type="FULL_STATE_DICT",
    )  # fmt: skip
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


class Sharded(loop.TrainingRun):
    made = False

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        Sharded.made = True
        assert all(isinstance(parameter, DTensor) for parameter in self.module.parameters())


if __name__ == "__main__":
    loop.make_accelerator = train.make_accelerator = make_sharded
    train.TrainingRun = Sharded
    status = main()
    assert Sharded.made or status, "the training was not sharded"
    sys.exit(status)
