"""What runs on a GPU gives the results of the CPU: every model, objective, filter, guide, transform
and analysis, on the double of a GPU (`gpu_double`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from gpu_double import DoubleTensor, gpu_double, record
from gpu_models import CASES, POISSON, check_agreement, made
from pyro import poutine
from torch import nn

from pyrodyn import analysis, data, infer, posterior
from pyrodyn.infer import (
    ELBO,
    GTF,
    IWELBO,
    RWS,
    VSMC,
    AdaptiveForcing,
    Kalman,
    Objective,
    SmoothedScore,
)

# ------------------------------------------------------------------ the double itself


def test_the_double_computes_what_the_cpu_computes() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4), torch.randn(4, 2, requires_grad=True)
    (x @ weight).tanh().sum().backward()
    with gpu_double() as record:
        on_gpu = x.to("cuda")
        moved = weight.detach().to("cuda").requires_grad_()
        record.clear()
        (on_gpu @ moved).tanh().sum().backward()
        assert on_gpu.device == moved.grad.device == torch.device("cuda", 0)
        assert not record.waits
        assert "aten.tanh.default" in [operation.name for operation in record.operations]
        torch.testing.assert_close(moved.grad.cpu(), weight.grad)


def test_the_double_refuses_what_a_gpu_refuses() -> None:
    with gpu_double():
        x = torch.ones(2, device="cuda")
        assert float((x * torch.tensor(2.0)).sum()) == 4  # constants of the host are accepted
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(x)
        gru = nn.GRU(2, 3).to("cuda")
        assert isinstance(gru.weight_hh_l0, DoubleTensor)
        inputs, state = (torch.zeros(5, 4, size, device="cuda") for size in (2, 3))
        expanded = torch.zeros(3, device="cuda").expand(1, 4, 3)
        with pytest.raises(RuntimeError, match="not contiguous"):
            gru(inputs, expanded)
        states = gru(inputs, state[:1].contiguous())[0]
        (slope,) = torch.autograd.grad(states.sum(), gru.weight_hh_l0, create_graph=True)
        with pytest.raises(RuntimeError, match="does not require grad"):
            slope.sum().backward()


@pytest.mark.parametrize(
    "work",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.new_tensor(1.0),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: torch.linalg.svdvals(x),
    ],
)
def test_the_double_counts_waits(work: Callable[[Any], Any]) -> None:
    with gpu_double() as record:
        x = torch.randn(3, 3, device="cuda")
        assert not record.waits
        work(x)
        assert sum(record.waits.values()) == 1


# ------------------------------------------------------------------------- objectives

RECOMMENDED: dict[str, Objective] = {
    kind: ELBO()
    if kind.startswith(("LFADS", "NodeSAE", "RnnSAE"))
    else Kalman()
    if kind == "LinearDynamics"
    else VSMC(4)
    for kind in CASES
}
OBJECTIVES: dict[str, Objective] = {
    "ELBO": ELBO(2),
    "stl": IWELBO(3, "stl"),
    "dreg": IWELBO(3, "dreg"),
    "RWS": RWS(3),
    "VSMC, stratified": VSMC(4, "stratified", 0.5),
    "VSMC, unbiased": VSMC(4, "multinomial", gradient="unbiased"),
    "VSMC, soft": VSMC(4, "soft"),
    "SmoothedScore": SmoothedScore(6),
}
MANY_OBJECTIVES = (
    "LFADS with both inputs",
    "NodeSAE with noise",
    "RnnSAE with noise",
    "optimal",
    "encoder",
    "LinearDynamics",
    "DensityModel",
)


def check_step(objective: Objective, kind: str) -> None:
    """Loss, gradients and new weights of one training step agree, and no operation of it makes the
    host wait for the GPU.
    """

    def step(device: str) -> list[Any]:
        model, _, batch = made(kind, device)
        loss_of = objective(model, model.guide)
        record.clear()
        with pyro.validation_enabled(False):  # as in `fit`
            loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        assert not record.waits
        trained = [p for p in model.parameters() if p.grad is not None]
        torch.optim.Adam(trained, fused=True).step()
        return [loss, *(p.grad for p in trained), *trained]

    check_agreement(step)


@pytest.mark.parametrize("kind", CASES)
def test_a_training_step_agrees(kind: str) -> None:
    check_step(RECOMMENDED[kind], kind)


@pytest.mark.parametrize("kind", ["ShallowPLRNN", "optimal"])
def test_forcing_and_its_adaptation_agree(kind: str) -> None:
    def steps(device: str) -> list[Any]:
        model, _, batch = made(kind, device)
        loss = GTF(AdaptiveForcing(every=1, gamma=0.5))(model, model.guide)
        found = [loss.evaluate(batch, step).loss for step in range(3)]
        found[-1].backward()
        return [loss.alpha, *found, *(p.grad for p in model.parameters() if p.grad is not None)]

    check_agreement(steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY_OBJECTIVES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_agrees(name: str, kind: str) -> None:
    check_step(OBJECTIVES[name], kind)


@pytest.mark.parametrize("kind", ["LFADS with inputs", "encoder"])
def test_densities_of_other_draws_agree(kind: str) -> None:
    """Of sites that the guide did not just draw; cuDNN computes them in full precision."""

    def densities(device: str) -> list[Any]:
        model, _, batch = made(kind, device)
        nodes = poutine.trace(model.guide).get_trace(batch).nodes
        sites = [site for site in (model.initial_condition_site, model.path_site) if site in nodes]
        return [nodes[site]["fn"].log_prob(nodes[site]["value"].detach().clone()) for site in sites]

    before = torch.backends.cudnn.rnn.fp32_precision
    check_agreement(densities)
    assert record.gru_precisions == ({"ieee"} if kind.startswith("LFADS") else set())
    assert torch.backends.cudnn.rnn.fp32_precision == before


# -------------------------------------------------------------- inference and analysis


def filter_and_smooth(model: Any, recording: Any, batch: Any) -> list[Any]:
    filtered = infer.particle_filter(model, batch, 20)
    method = "ffbsi" if model.path_is_markov else "ancestral"
    smoothed = infer.particle_smoother(model, batch, 5, method=method, filtered=filtered)
    return [
        filtered.log_evidence,
        filtered.mean(),
        filtered.log_evidence_variance,
        smoothed.paths,
    ]


def stream(model: Any, recording: Any, batch: Any) -> list[Any]:
    algorithm, at, found = infer.SequentialMonteCarlo(model, 20), None, []
    for t in range(3):
        inputs = batch.inputs[:, t] if model.config["input_dim"] else None
        at, record = infer.filter_bin(algorithm, batch.x[:, t], inputs, stream=at)
        found.append(record.log_evidence)
    return found


def draws(guide: Callable[[Any], Any]) -> Callable[..., list[Any]]:
    """The posterior mean under a guide that is built for a model."""
    return lambda model, recording, batch: [
        value.values
        for value in posterior.predict(
            model, recording, num_draws=3, batch_size=2, guide=guide(model)
        ).values()
    ]


def tree(**options: Any) -> Callable[..., list[Any]]:
    return lambda model, recording, batch: [
        posterior.to_datatree(model, recording, num_draws=4, batch_size=2, **options)[
            "posterior/rates"
        ].values
    ]


def flow(model: Any) -> Any:
    return infer.FlowStart(model).to(next(model.parameters()))


def quiet_loss(model: Any, recording: Any, batch: Any) -> list[Any]:
    quiet = model.without_noise()
    return [ELBO()(quiet, quiet.guide)(batch)]


def exact(model: Any, recording: Any, batch: Any) -> list[Any]:
    smoothed = infer.kalman_smoother(model, batch)
    return [infer.kalman_filter(model, batch).log_evidence, smoothed.means]


def moved_starts(model: Any, recording: Any, batch: Any) -> list[Any]:
    states = analysis.visited_states(model, recording).flatten(0, 1)
    moved = model.with_initial_states(states)
    return [ELBO()(moved, moved.guide)(batch)]


def chains(model: Any, recording: Any, batch: Any) -> list[Any]:
    sample = infer.mcmc_sample(model, model.guide, batch, 4, num_chains=2, num_warmup=4)
    return list(sample.sites.values())


WORK: dict[str, Callable[[Any, Any, Any], list[Any]]] = {
    "filter": filter_and_smooth,
    "filter_bin": stream,
    "kalman": exact,
    "importance": lambda m, r, b: [infer.importance_sample(m, m.guide, b, 60).log_evidence],
    "path_pool": lambda m, r, b: [infer.path_pool(m, b, 5, num_particles=100).log_evidence],
    "fisher_scoring": lambda m, r, b: [
        step.gain for step in infer.fisher_scoring(m, b, 1, num_draws=4, num_particles=200)
    ],
    "mcmc": chains,
    "LaplaceStart": draws(lambda m: infer.LaplaceStart(m, num_searches=2, num_steps=4)),
    "MixtureStart": draws(lambda m: infer.MixtureStart(m, num_draws=80)),
    "RefinedGuide": draws(lambda m: infer.RefinedGuide(m, num_steps=2)),
    "FlowStart": draws(flow),
    "predict": draws(lambda m: None),
    "to_datatree": tree(num_prior_draws=2),
    "to_datatree, importance": tree(method="importance", num_particles=60),
    "to_datatree, smoother": tree(method="smoother", num_particles=20),
    "to_datatree, exact": tree(method="exact"),
    "one_step": lambda m, r, b: [
        posterior.one_step_predictions(m, r, num_particles=20)["log_score"]
    ],
    "without_noise": quiet_loss,
    "with_initial_states": moved_starts,
    "free_run": lambda m, r, b: [analysis.free_run(m, 3, 5)["latents"].values],
    "fixed_points": lambda m, r, b: [
        analysis.fixed_points(m, starts=analysis.visited_states(m, r), num_starts=4)["residual"]
    ],
    "search": lambda m, r, b: [
        analysis.fixed_points(
            analysis.dynamics_of(m), starts=analysis.visited_states(m, r), num_starts=4
        )["residual"]
    ],
    "lyapunov": lambda m, r, b: [
        analysis.lyapunov_spectrum(m, analysis.visited_states(m, r)[:, -1], 3, burn_in=1)[
            "by_trial"
        ]
    ],
    "checks": lambda m, r, b: [m.check(r) or m.check_batch(b) or 0.0],
}
CORE = [
    ("LFADS with inputs", "predict"),
    ("NodeSAE", "LaplaceStart"),
    ("NodeSAE", "with_initial_states"),
    ("NodeSAE", "lyapunov"),
    ("optimal", "filter"),
    ("encoder", "filter_bin"),
    ("LinearDynamics", "kalman"),
    ("RnnSAE with noise", "to_datatree"),
]
MORE = {
    "LFADS": ("LaplaceStart", "FlowStart", "free_run", "fixed_points"),
    "LFADS with inputs": ("filter", "importance", "RefinedGuide", "free_run", "to_datatree"),
    "NodeSAE": (
        "importance",
        "MixtureStart",
        "FlowStart",
        "RefinedGuide",
        "path_pool",
        "fisher_scoring",
        "mcmc",
        "free_run",
        "fixed_points",
        "to_datatree, importance",
        "checks",
    ),
    "NodeSAE with noise": ("filter", "path_pool", "free_run", "without_noise"),
    "RnnSAE with noise": ("filter",),
    "optimal": ("free_run", "fixed_points", "lyapunov", "one_step", "filter_bin"),
    "encoder": ("filter", "search", "to_datatree, smoother"),
    "bootstrap": ("filter", "path_pool", "filter_bin", "to_datatree"),
    "heavy tails": ("filter",),
    "driven": ("filter",),
    "LinearDynamics": ("filter", "to_datatree, exact"),
    "DensityModel": ("filter", "filter_bin", "free_run"),
}


UNRELIABLE = pytest.mark.filterwarnings("ignore:draws by method=.* are unreliable")
"""Of draws from few particles, which are all that a test of agreement needs."""


def check_work(kind: str, name: str) -> None:
    def work(device: str) -> list[Any]:
        model, recording, batch = made(kind, device)
        return WORK[name](model.eval(), recording, batch)

    check_agreement(work)


@pytest.mark.parametrize(("kind", "name"), CORE)
def test_inference_and_analysis_agree(kind: str, name: str) -> None:
    check_work(kind, name)


@pytest.mark.slow
@UNRELIABLE
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in MORE.items() for name in names]
)
def test_all_inference_and_analysis_agree(kind: str, name: str) -> None:
    check_work(kind, name)


@pytest.mark.parametrize(
    "transform",
    [
        data.CoordinatedDropout(0.3, 0.1),
        data.MaskedModelling(0.3, 2, 0.8),
        data.HoldOutNeurons([1]),
        data.Forecast(2),
        data.SampleValidation(0.2),
        data.TemporalShift(2),
        data.SpikeJitter(1),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_transforms_agree(transform: data.batch.Transform) -> None:
    def transformed(device: str) -> list[Any]:
        batch = transform(data.Trials(POISSON, device, torch.double).batch())
        return [batch.x, batch.seen, batch.visible, batch.scored]

    check_agreement(transformed)
