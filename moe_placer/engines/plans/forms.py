"""Every format of plan files by its name."""

from __future__ import annotations

from moe_placer.engines.plans.form import PlanForm
from moe_placer.engines.plans.omni import OmniForm
from moe_placer.engines.plans.sglang import SglangForm
from moe_placer.engines.plans.tensorrt_llm import TrtllmForm
from moe_placer.engines.plans.vllm import VllmInitialMapForm, VllmPlanForm
from moe_placer.engines.plans.vllm_ascend import VllmAscendForm
from moe_placer.engines.plans.vllm_jsonl import VllmJsonlForm

__all__ = ["FORMS"]

FORMS: dict[str, PlanForm] = {
    form.name: form
    for form in (
        SglangForm(),
        VllmPlanForm(),
        VllmInitialMapForm(),
        VllmJsonlForm(),
        TrtllmForm(),
        VllmAscendForm(),
        OmniForm(),
    )
}
