"""From what a user has - a model's config, recordings, a description of the network - to an instance file."""

from moe_placer.engines.init.aiconfigurator import System, read_system
from moe_placer.engines.init.draft import Draft, Wishes, draft_instance
from moe_placer.engines.init.model_config import read_model_config
from moe_placer.engines.init.recorded_traffic import inspect_recordings
from moe_placer.engines.init.text import instance_text
from moe_placer.engines.init.write_instance import init
from moe_placer.instance.gpu_presets import PRESETS

__all__ = [
    "PRESETS",
    "Draft",
    "System",
    "Wishes",
    "draft_instance",
    "init",
    "inspect_recordings",
    "instance_text",
    "read_model_config",
    "read_system",
]
