"""One training: learning rate, running mean, resuming, precision, what is kept, and several processes."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy_decorator import machine
from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import load_policy, parameter_hash
from policy_decorator.base_policies.compiled import compiles
from policy_decorator.base_policies.diffusion import DiffusionConfig
from policy_decorator.base_policies.imitate import ImitateConfig, ImitationResult, Imitator, imitate
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.base_policies.precision import in_bfloat16
from policy_decorator.base_policies.processes import Processes
from policy_decorator.base_policies.rnn import RNNConfig
from policy_decorator.base_policies.training import Training, _settings, cuda, learning_rate, running_mean
from policy_decorator.base_policies.vinn import VINNConfig
from policy_decorator.base_policies.windows import load_windows
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.errors import UserError

pytest.importorskip("diffusers")

CPU = torch.device("cpu")
NETS: dict[str, Any] = {
    "mlp": MLPConfig(width=8),
    "bet": BeTConfig(context=3, clusters=3, layers=1, heads=2, width=8, gpt_output=8),  # its dropout draws
    "diffusion": DiffusionConfig(horizon=4, widths=(8,), step_size=8, context=1),
    "rnn": RNNConfig(width=8, layers=1, sequence=3),
    "vinn": VINNConfig(bet=BeTConfig(context=2, clusters=3, layers=1, heads=2, width=8, gpt_output=8)),
}
EVERYTHING = ImitateConfig(
    steps=24, batch_size=8, lr=1e-2, schedule="cosine", warmup_steps=3, ema=0.9, eval_every=7, save_every=5
)


def demos() -> Demonstrations:
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (60, 4)).astype(np.float32)
    return Demonstrations(
        task="toy/reach-gym",
        observations=observations,
        actions=(0.5 * observations[:, :2] - 0.4 * observations[:, 2:]).astype(np.float32),
        success=np.ones(60, dtype=bool),
        lengths=np.array([20, 15, 25]),
        seeds=np.arange(3),
        source="a test",
        details={},
    )


def fresh(name: str = "mlp", seed: int = 0) -> Imitator:
    torch.manual_seed(seed)
    return build(name, 4, 2, NETS[name])


def alternating(policy: Imitator, step: int) -> float:
    """A success rate that rises and falls, and draws."""
    return float(torch.rand(()) * 0) + (step % 3) / 3


class StopHere(Exception):
    """An interruption."""


# ---- learning rate and running mean ---------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_and_falls_as_said(schedule: str) -> None:
    cfg = ImitateConfig(steps=50, lr=0.2, schedule=schedule, warmup_steps=10)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=cfg.lr)
    rates = learning_rate(optimizer, cfg)
    for step in range(51):
        past = (step - 10) / 40
        after = {"constant": 1.0, "linear": 1 - past, "cosine": 0.5 * (1 + math.cos(math.pi * past))}[schedule]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * (step / 10 if step < 10 else after), abs=1e-9)
        optimizer.step()
        rates.step()


def test_a_constant_learning_rate_needs_no_schedule() -> None:
    assert learning_rate(torch.optim.AdamW([torch.zeros(1)], lr=1.0), ImitateConfig()) is None


def test_the_running_mean_is_that_of_the_released_code() -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    average, mean = running_mean([parameter], 0.8), 0.0
    for s in range(60):
        with torch.no_grad():
            parameter.fill_(math.sin(s))
        average.step([parameter])
        decay = min((1 + s) / (10 + s), 0.8) if s else 0.0  # the first step copies
        mean = decay * mean + (1 - decay) * math.sin(s)
    assert average.shadow_params[0].item() == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("evaluated", [True, False])
def test_the_mean_is_evaluated_and_kept_and_the_training_goes_on_without_it(evaluated: bool) -> None:
    seen: list[str] = []

    def evaluate(policy: Imitator, step: int) -> float:
        seen.append(parameter_hash(policy))
        return step / 100

    cfg = replace(EVERYTHING, schedule="constant", warmup_steps=0)
    kept = imitate(fresh(), demos(), cfg, evaluate=evaluate if evaluated else None).policy
    plain = imitate(fresh(), demos(), replace(cfg, ema=0.0))
    with_mean = imitate(fresh(), demos(), cfg)
    assert with_mean.history == plain.history  # the losses are those of the parameters themselves
    assert parameter_hash(kept) == parameter_hash(with_mean.policy) != parameter_hash(plain.policy)
    assert not evaluated or seen[-1] == parameter_hash(kept)


def test_bet_and_mlp_are_trained_as_before() -> None:
    cfg = ImitateConfig()
    assert (cfg.schedule, cfg.warmup_steps, cfg.ema, cfg.keep_success) == ("constant", 0, 0.0, None)
    assert (cfg.lr, cfg.weight_decay, cfg.betas, cfg.batch_size) == (1e-4, 2e-4, (0.9, 0.999), 2048)


@pytest.mark.parametrize("evaluated", [True, False])
def test_vinns_database_is_that_of_the_mean(evaluated: bool) -> None:
    """What is evaluated and kept, and what the training goes on with, are different parameters."""

    def keys(policy: Any) -> torch.Tensor:
        fresh = copy.deepcopy(policy)
        fresh.stale = True
        with machine.as_it_was():
            machine.use_cpu_well(CPU)  # with the training's products, which on some processors are rounded otherwise
            fresh.refresh()
        return fresh.keys

    def evaluate(policy: Any, step: int) -> float:
        answers = policy.act(torch.zeros(1, policy.context, 4))
        seen.append((policy.keys.clone(), keys(policy)))
        assert answers.isfinite().all()
        return step / 100

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    cfg = replace(EVERYTHING, schedule="constant", warmup_steps=0)
    policy: Any = imitate(fresh("vinn"), demos(), cfg, evaluate=evaluate if evaluated else None).policy
    for kept, wanted in [*seen, (policy.keys, keys(policy))]:
        torch.testing.assert_close(kept, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"ema": 0.9}, {"warmup_steps": 10}, {"precision": "bfloat16"}])
def test_where_there_is_nothing_to_train_all_settings_do(change: dict[str, Any]) -> None:
    policy = build("vinn", 4, 2, VINNConfig(representation="obs"))
    assert len(imitate(policy, demos(), ImitateConfig(steps=20, batch_size=8, **change)).history) == 1


def test_the_random_state_of_the_trainings_own_gpu_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    own, asked = torch.device("cuda:1"), []
    assert (cuda(own), cuda(torch.device("cpu"))) == ([own], [])
    forked = torch.random.fork_rng

    def watched(devices: Any = None) -> Any:
        asked.append(devices)
        return forked(devices=[])

    monkeypatch.setattr(torch.random, "fork_rng", watched)
    training = Training(fresh(), load_windows(fresh(), demos(), EVERYTHING, CPU, None), EVERYTHING, Processes(CPU))
    training.device = own
    training._evaluate(lambda policy, step: 0.5)
    assert asked == [[own]]


# ---- what is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "step"), [(None, 20), (0.3, 10), (0.55, 25), (0.0, 5)])
def test_the_checkpoint_nearest_to_a_success_rate(wanted: float | None, step: int) -> None:
    rates = iter([0.1, 0.35, 0.5, 0.9, 0.6])
    cfg = ImitateConfig(steps=25, batch_size=8, eval_every=5, keep_success=wanted)
    assert imitate(fresh(), demos(), cfg, evaluate=lambda p, s: next(rates)).best_step == step


# ---- resuming -------------------------------------------------------------------------------------------------


def interrupted(name: str, cfg: ImitateConfig, at: int, path: Path) -> None:
    def stop(step: int, steps: int, row: dict[str, float]) -> None:
        if step >= at:
            raise StopHere

    with pytest.raises(StopHere):
        imitate(fresh(name), demos(), cfg, evaluate=alternating, progress=stop, checkpoint=path)


def same(a: ImitationResult, b: ImitationResult) -> bool:
    assert (a.best_step, a.best_success, a.history) == (b.best_step, b.best_success, b.history)
    return parameter_hash(a.policy) == parameter_hash(b.policy)


@pytest.mark.parametrize("name", sorted(NETS))
@pytest.mark.parametrize("cfg", [EVERYTHING, replace(EVERYTHING, schedule="constant", warmup_steps=0, ema=0.0)])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(name: str, cfg: ImitateConfig, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "training.pt"
    whole = imitate(fresh(name), demos(), cfg, evaluate=alternating)
    interrupted(name, cfg, 14, path)  # after steps 5 and 10 were saved, and 7 evaluated
    assert torch.load(path, weights_only=True)["training"]["step"] == 10
    torch.rand(7)
    resumed = imitate(fresh(name, seed=9), demos(), cfg, evaluate=alternating, checkpoint=path, resume=True)
    assert same(resumed, whole)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    plain = imitate(fresh("bet"), demos(), EVERYTHING, evaluate=alternating)
    saved = imitate(fresh("bet"), demos(), EVERYTHING, evaluate=alternating, checkpoint=tmp_path / "training.pt")
    assert same(saved, plain)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    interrupted("mlp", EVERYTHING, 14, path)

    def resume(net: Any, cfg: ImitateConfig, data: Demonstrations) -> None:
        imitate(build("mlp", 4, 2, net), data, cfg, evaluate=alternating, checkpoint=path, resume=True)

    net = NETS["mlp"]
    with pytest.raises(UserError, match="had batch_size 8, not 16"):
        resume(net, replace(EVERYTHING, batch_size=16), demos())
    with pytest.raises(UserError, match="had width of the policy 8, not 9"):
        resume(replace(net, width=9), EVERYTHING, demos())
    other = replace(demos(), observations=demos().observations * 2)
    for data in (demos().first(2), other):
        with pytest.raises(UserError, match="had demonstrations"):
            resume(net, EVERYTHING, data)
    resume(net, replace(EVERYTHING, save_every=100), demos())  # how often it is saved changes nothing


def test_pictures_are_part_of_the_demonstrations() -> None:
    training = Training(fresh(), load_windows(fresh(), demos(), EVERYTHING, CPU, None), EVERYTHING, Processes(CPU))
    rgb = np.zeros((60, 3, 2, 2), dtype=np.uint8)
    seen = [replace(demos(), pictures=pictures) for pictures in ({}, {"rgb": rgb}, {"rgb": rgb + np.uint8(1)})]
    assert len({_settings(training, data, True)["demonstrations"] for data in seen}) == 3


def test_nothing_to_resume_and_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    with pytest.raises(UserError, match="There is no"):
        imitate(fresh(), demos(), EVERYTHING, checkpoint=path, resume=True)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="damaged"):
        imitate(fresh(), demos(), EVERYTHING, checkpoint=path, resume=True)
    with pytest.raises(UserError, match="say which checkpoint"):
        imitate(fresh(), demos(), EVERYTHING, resume=True)


# ---- precision and compilation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NETS))
def test_bfloat16_is_near_float32_and_leaves_the_parameters_alone(name: str) -> None:
    cfg = ImitateConfig(steps=20, batch_size=32, lr=1e-3)
    exact = imitate(fresh(name), demos(), cfg)
    if name == "rnn" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(UserError, match="This CPU cannot train recurrent layers in bfloat16"):
            imitate(fresh(name), demos(), replace(cfg, precision="bfloat16"))
        return
    half = imitate(fresh(name), demos(), replace(cfg, precision="bfloat16"))
    assert all(value.dtype == torch.float32 for value in half.policy.state_dict().values())
    assert half.history[0]["loss"] != exact.history[0]["loss"]
    assert half.history[0]["loss"] == pytest.approx(exact.history[0]["loss"], rel=0.05)
    assert same(imitate(fresh(name), demos(), replace(cfg, precision="float32")), exact)  # auto, on a CPU


RAW: dict[str, tuple[Any, bool]] = {
    "mlp": (MLPConfig(), False),
    "rnn": (RNNConfig(), False),
    "mlp raw": (MLPConfig(standardize_obs=False), True),
    "rnn raw": (RNNConfig(standardize_obs=False), True),
    "bet": (BeTConfig(), True),
    "bet standardised": (BeTConfig(standardize_obs=True), False),
    "diffusion": (DiffusionConfig(), True),
    "vinn": (VINNConfig(), True),
}


@pytest.mark.parametrize("case", sorted(RAW))
def test_raw_observations_keep_their_digits_on_a_gpu(case: str) -> None:
    cfg, raw = RAW[case]
    policy, cpu, cuda = build(case.split()[0], 4, 2, cfg), torch.device("cpu"), torch.device("cuda")
    assert in_bfloat16(policy, "auto", cuda) is not raw
    assert not in_bfloat16(policy, "auto", cpu)
    assert in_bfloat16(policy, "bfloat16", cuda)
    assert not in_bfloat16(policy, "float32", cuda)


def test_what_is_compiled_by_itself() -> None:
    short, long = ImitateConfig(steps=9_999), ImitateConfig(steps=10_000)
    assert [compiles(cfg, torch.device("cuda")) for cfg in (short, long, replace(long, compile="off"))] == [
        False,
        True,
        False,
    ]
    assert [compiles(cfg, torch.device("cpu")) for cfg in (long, replace(short, compile="on"))] == [False, True]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:torch.compile failed")
@pytest.mark.parametrize(("name", "backend"), [("bet", "inductor"), ("diffusion", "aot_eager")])
def test_a_compiled_training_draws_the_same_noise(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second the graph is made and run, without kernels of its own: those take a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    cfg = ImitateConfig(steps=20, batch_size=16, lr=1e-3)
    plain = imitate(fresh(name), demos(), cfg)
    compiled = imitate(fresh(name), demos(), replace(cfg, compile="on"))
    assert compiled.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-4)


# ---- several processes ----------------------------------------------------------------------------------------


def test_a_batch_that_two_processes_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    from policy_decorator.base_policies import imitate as module
    from policy_decorator.base_policies.processes import Processes

    class Two(Processes):
        count = 2

    monkeypatch.setattr(module, "processes_of", Two)
    with pytest.raises(UserError, match="batch_size 7 is not a multiple of the 2 processes"):
        imitate(fresh(), demos(), ImitateConfig(steps=1, batch_size=7))


def run_in_two(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launch, "policy_decorator.cli", *command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_answer_once(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    demos().save(tmp_path / "demos.h5")
    options = "--demos demos.h5 --width 8 --steps 40 --batch-size 16 --lr 3e-3 --eval-every 20 --eval-episodes 4"
    words = ["imitate", "mlp", *options.split(), "--workers", "0", "--device", "cpu", "--json"]
    done = run_in_two([*words, "--out", "two"], tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # one answer
    assert [row["step"] for row in told["history"]] == [20, 40]

    torch.manual_seed(0)
    alone = build("mlp", 4, 2, MLPConfig(width=8))
    cfg = ImitateConfig(steps=40, batch_size=16, lr=3e-3, eval_every=20)
    rates = iter([row["success"] for row in told["history"]])
    imitate(alone, demos(), cfg, evaluate=lambda p, s: next(rates))
    two = load_policy(tmp_path / "two").state_dict()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    assert not (tmp_path / "two" / "training.pt").exists()
