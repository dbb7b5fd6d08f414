"""The optimizers of `train.optim_g`, over a network's weights and its quantizers' steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.config import registries
from quantsr.config.binding import parameters
from quantsr.config.training import OptimizerOptions, SchedulerOptions, TrainOptions
from quantsr.quant import step_magnitudes, step_parameters


def build_optimizers(net: nn.Module, train: TrainOptions) -> list[torch.optim.Optimizer]:
    """The optimizers of the options; ``type: Muon`` gives Adam and `KernelMuon`.

    `KernelMuon` updates the weights of `hidden_weights`, Adam all other parameters.

    The first group are weights; quantizer steps and thresholds follow with a rate of their own and
    no decay. A group's ``lr`` is at first its ``rate``, which the options give, times its ``unit``,
    which calibration gives.
    """
    optim = train.optim_g
    by_muon = hidden_weights(net) if optim.type == "Muon" else []
    steps = step_parameters(net)
    others = {id(parameter) for parameter in [*steps.values(), *by_muon]}
    weights = [p for p in net.parameters() if p.requires_grad and id(p) not in others]
    groups: list[dict[str, Any]] = [{"params": weights, "rate": optim.lr, "unit": 1.0}]
    rate = optim.lr * train.step_lr_mult
    if train.step_lr == "relative":
        # LSQ's gradient scale leaves activation steps gradients of 1e-9, below Adam's usual
        # epsilon.
        common = {"weight_decay": 0.0, "eps": 1e-15}
        for name, unit in step_magnitudes(net).items():
            groups.append({"params": [steps[name]], "rate": rate, "unit": unit, **common})
    elif steps:
        groups.append({"params": list(steps.values()), "rate": rate, "unit": 1.0, "weight_decay": 0.0})
    for group in groups:
        group["lr"] = group["rate"] * group["unit"]
    if optim.type != "Muon":
        return [registries.optimizers()[optim.type](groups, **_arguments(optim))]
    beta1, beta2 = optim.betas
    adam = torch.optim.Adam(
        groups, lr=optim.lr, betas=(beta1, beta2), weight_decay=optim.weight_decay, fused=True
    )
    if not by_muon:
        return [adam]
    own = {key: v for key, v in optim.arguments().items() if key not in ("lr", "betas", "weight_decay")}
    muon = KernelMuon(by_muon, lr=optim.lr, weight_decay=optim.weight_decay, **own)
    muon.param_groups[0].update(rate=optim.lr, unit=1.0)
    return [adam, muon]


def build_schedulers(
    optimizers: Sequence[torch.optim.Optimizer], options: SchedulerOptions
) -> list[torch.optim.lr_scheduler.LRScheduler]:
    """The schedule of the options, for each optimizer."""
    kind = registries.schedulers()[options.type]
    return [kind(optimizer, **options.arguments()) for optimizer in optimizers]


def _arguments(options: OptimizerOptions) -> dict[str, Any]:
    """The section's arguments, with its defaults for parameters that the optimizer accepts."""
    accepted = parameters(registries.optimizers()[options.type])
    # Fused: one call instead of a dozen small ones for each of several hundred tensors.
    common = {"betas": tuple(options.betas), "weight_decay": options.weight_decay, "fused": True}
    given = {"lr": options.lr, **common, **options.arguments()}
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in given.items()
        if key in accepted
    }


def restore(
    optimizer: torch.optim.Optimizer, scheduler: Any, state: Mapping[str, Any], schedule: Mapping[str, Any]
) -> None:
    """Restore moments, units of the rates and the schedule's state; the rest follows the options.

    Args:
        optimizer, scheduler: as built from the options.
        state, schedule: of the run that is resumed.

    Raises:
        KeyError, TypeError, ValueError: they are another network's, or damaged.
    """
    if schedule.keys() != {"last_epoch", "_step_count", "_last_lr"}:
        raise ValueError("a schedule of other entries")
    if type(schedule["last_epoch"]) is not int or type(schedule["_step_count"]) is not int:
        raise ValueError("a schedule whose place is no number")
    rates = schedule["_last_lr"]
    if len(rates) != len(optimizer.param_groups) or not all(isinstance(rate, (int, float)) for rate in rates):
        raise ValueError("a schedule of other rates")
    present = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} of another shape than its parameter")
    scheduler.load_state_dict(dict(schedule))
    for index, (group, now) in enumerate(zip(optimizer.param_groups, present, strict=True)):
        unit, before = group["unit"], group["initial_lr"]
        initial = now["rate"] * unit
        group.update(now, unit=unit, initial_lr=initial, lr=group["lr"] * (initial / before))
        # A schedule by milestones goes on from the rate it finds, a cosine from the first one.
        scheduler._last_lr[index] *= initial / before
        scheduler.base_lrs[index] = initial


def hidden_weights(net: nn.Module) -> list[nn.Parameter]:
    """Weights of all convolutions and linear layers except the first and the last."""
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.requires_grad]
    return [layer.get_parameter("weight") for layer in layers[1:-1]]


class KernelMuon(torch.optim.Muon):
    """Muon for weights of any shape: a kernel (O, I, k, k) is the matrix (O, I * k * k).

    The momentum of every matrix is replaced by the nearest orthogonal one, so that all directions
    of a layer learn at one speed, and scaled to the size of Adam's steps (K. Jordan, "Muon", 2024;
    J. Liu et al., arXiv:2502.16982, section 2.2). ``torch.optim.Muon`` takes matrices only: here
    they share the weights' memory. It takes them one by one; together, those of one shape need a
    fifteenth of the calls in a network of 16 blocks, which is what a GPU wants, but a quarter more
    time on a CPU.

    Args:
        weights: dense in memory, contiguous or channels-last; they must stay where they are.
        lr: learning rate, on Adam's scale.
        weight_decay: decoupled, as AdamW's.
        options: further arguments of ``torch.optim.Muon``.
        together: whether matrices of one shape go together; by default on a GPU. Sums in another
            order are the only difference.

    Raises:
        ValueError: a weight lies otherwise in memory, so that no matrix can share it.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        together: bool | None = None,
        **options: Any,
    ) -> None:
        self.weights = list(weights)
        self.together = self.weights[0].is_cuda if together is None else together
        matrices = [nn.Parameter(_matrix(weight.detach(), weight)) for weight in self.weights]
        if any(m.data_ptr() != w.data_ptr() for m, w in zip(matrices, self.weights, strict=True)):
            raise ValueError("Muon needs weights that are contiguous or channels-last in memory")
        super().__init__(
            matrices, lr=lr, weight_decay=weight_decay, **{"adjust_lr_fn": "match_rms_adamw", **options}
        )
        self.matrices = matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss of ``closure``, which computes the gradients if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, weight)
        if not self.together:
            super().step()
            return loss
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in self.matrices:
            if matrix.grad is not None:
                by_shape.setdefault(matrix.shape, []).append(matrix)
        for matrices in by_shape.values():
            self._move(matrices, self.param_groups[0])
        return loss

    def _move(self, matrices: Sequence[nn.Parameter], group: Mapping[str, Any]) -> None:
        """Update matrices of one shape; a tensor ``lr`` is not copied to the host."""
        momentum, rate = group["momentum"], group["lr"]
        grads = [matrix.grad for matrix in matrices if matrix.grad is not None]
        buffers = [self._buffer(matrix) for matrix in matrices]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch.stack(torch._foreach_lerp(grads, buffers, momentum))  # Nesterov's momentum
        updates = orthogonal(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        size = 0.2 * math.sqrt(max(matrices[0].shape))
        params = [matrix.detach() for matrix in matrices]
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        torch._foreach_sub_(params, list((updates.float() * (rate * size)).unbind()))

    def _buffer(self, matrix: nn.Parameter) -> Tensor:
        """Running mean of a matrix's gradients, under the key of ``torch.optim.Muon``."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the weights."""
        super().zero_grad()
        for weight in self.weights:
            if weight.grad is not None and not set_to_none:
                weight.grad.zero_()
            else:
                weight.grad = None


def _matrix(values: Tensor, weight: Tensor) -> Tensor:
    """``values`` as (O, n) in the memory order of ``weight``, (O, ...); a view if possible."""
    if values.ndim == 4 and not weight.is_contiguous():
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(weight), -1)


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Approximately nearest orthogonal matrices by Newton and Schulz's iteration in bf16.

    Singular values of the result are 0.7 to 1.2.

    Args:
        matrices: (n, rows, columns).
        coefficients: of the iteration ``X <- a X + b (X X^T) X + c (X X^T)^2 X``.
        steps: iterations.
        eps: least norm that is divided by.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
