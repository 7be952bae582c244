"""The cuda backend: kernels that numba-cuda compiles for an NVIDIA GPU, and steps that stay there."""

from __future__ import annotations

from ...errors import BackendError
from ...plan import Plan
from ...protocol import Program, State
from .. import scalars
from . import choice, kernels, own, shim, shuffle
from .steps import Steps

__all__ = ["Cuda"]


class Cuda:
    """The device is the driver's current one; `is_real` is False in the simulator."""

    name = "cuda"

    def __init__(self) -> None:
        reason = shim.missing()
        if reason is not None:
            raise BackendError(reason)
        self.device, self.is_real = shim.described(), not shim.SIMULATED

    def supports(self, plan: Plan) -> str | None:
        where = "fastbatch/backends/scalars"
        for stage in plan.stages:
            if stage.activation.formula is None and stage.activation.name not in scalars.ACTIVATIONS:
                return f"activation {stage.activation.name!r} has no row in {where}/activations.py"
        if plan.loss.formula is None and plan.loss.name not in {*scalars.ELEMENT_LOSSES, *scalars.ROW_LOSSES}:
            return f"loss {plan.loss.name!r} has no row in {where}/losses.py"
        if plan.optimizer.formula is None and plan.optimizer.rule not in scalars.OPTIMIZERS:
            return f"optimizer rule {plan.optimizer.rule!r} has no row in {where}/optimizers.py"
        reason = own.refusal(plan)
        if reason is None and plan.precision == "bf16":
            reason = choice.bf16_refusal(plan)
        return reason

    @property
    def tensor_cores(self) -> str:
        """What they are used for here; measured when it is asked first."""
        return choice.described()

    dense_forward = staticmethod(kernels.dense_forward)
    dense_backward = staticmethod(kernels.dense_backward)
    loss = staticmethod(kernels.loss)
    update = staticmethod(kernels.update)
    permutation = staticmethod(shuffle.permutation)
    seen = staticmethod(shim.seen)
    fetched = staticmethod(shim.fetched)

    def program(self, plan: Plan, state: State, num_threads: int | None) -> Program | None:
        return None

    def steps(self, plan: Plan, state: State, num_threads: int | None) -> Steps:
        return Steps(plan, state)
