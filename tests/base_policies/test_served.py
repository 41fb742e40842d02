"""Policies behind a socket: our client with servers in other processes, and our server with an independent client."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import ACTION, OBS, STEPS, check_contract, episode, played, real, remembers

from policy_decorator import api
from policy_decorator.base_policies import build
from policy_decorator.base_policies.checkpoint import parameter_hash, save_policy
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.base_policies.networks import parameters_of
from policy_decorator.base_policies.places import from_place, is_place
from policy_decorator.base_policies.seeing import CNNConfig, SeeingPolicy
from policy_decorator.base_policies.served import from_address, served
from policy_decorator.cli import main
from policy_decorator.encoders import EncoderConfig
from policy_decorator.envs.images import together
from policy_decorator.errors import UserError
from policy_decorator.memory import ask, session
from policy_decorator.refine import refine
from policy_decorator.runlog import RunFolder
from policy_decorator.serving.server import Server

HERE = Path(__file__).parent
QUERY = "?observation/state=:&prompt=reach"


class Running:
    """A server in a process of its own, which can be killed and started again at the same port."""

    def __init__(self, *command: str) -> None:
        self.command, self.port = command, 0
        self.start()

    def start(self) -> None:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        words = [word.format(port=self.port) for word in self.command]
        self.process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := [
                word for word in line.decode().replace("127.0.0.1:", " ").replace(";", " ").split() if word.isdigit()
            ]:
                self.port = int(found[-1])
                return
        raise AssertionError("the server ended")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@contextmanager
def running(*command: str) -> Iterator[Running]:
    real("websockets")
    real("msgpack")
    server = Running(*command)
    try:
        yield server
    finally:
        server.kill()


def openpi(kind: str = "plain") -> Any:
    return running(str(HERE / "openpi_server.py"), "{port}", kind)


def ours(obs_size: int = OBS, parameters: str = "a") -> Any:
    return running(str(HERE / "our_server.py"), "{port}", str(obs_size), parameters)


@contextmanager
def in_a_thread(policy: Any, obs_size: int, action_size: int, **how: Any) -> Iterator[str]:
    """The address of our server, in this process."""
    real("websockets")
    real("msgpack")
    server, ready = Server(policy, obs_size=obs_size, action_size=action_size, **how), queue.Queue[int]()
    thread = threading.Thread(target=server.run, args=("127.0.0.1", 0, ready.put))
    thread.start()
    try:
        yield f"ws://127.0.0.1:{ready.get(timeout=60)}"
    finally:
        server.stop()
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    policy, path = MLPPolicy(MLPConfig(width=8, context=2), 4, 2), tmp_path_factory.mktemp("saved") / "base"
    save_policy(policy, path, details={"task": "toy/reach"})
    return path


@pytest.fixture(scope="module")
def our_server() -> Iterator[Running]:
    with ours() as server:
        yield server


def pidec_serve(folder: Path | str, *more: str) -> Any:
    return running("-m", "policy_decorator.cli", "serve", str(folder), "--port", "{port}", *more)


# ---- what is said --------------------------------------------------------------------------------------------


def test_messages_are_those_of_openpi() -> None:
    real("msgpack")
    from openpi_server import packb, unpackb

    from policy_decorator.serving.wire import pack, unpack

    message = {
        "observation/image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "observation/state": np.linspace(-1, 1, 7, dtype=np.float32),
        "nested": {"n": np.float64(0.5), "flag": np.bool_(True)},
        "prompt": "reach",
    }
    assert pack(message) == packb(message)
    for back in (unpack(packb(message)), unpackb(pack(message))):
        assert back["prompt"] == "reach"
        assert back["nested"] == {"n": 0.5, "flag": True}
        np.testing.assert_array_equal(back["observation/image"], message["observation/image"])
    unpack(pack(message))["observation/state"][0] = 3  # may be written to
    for wrong in ({"x": np.array([None])}, {"x": object()}, {"x": np.zeros(1, dtype=complex)}):
        with pytest.raises(UserError, match="cannot be sent"):
            pack(wrong)
    for wrong in (b"\xc1", b"", packb({b"__ndarray__": True, b"data": b"12345678", b"dtype": "|O", b"shape": [1]})):
        with pytest.raises(UserError, match="none of a policy server's"):
            unpack(wrong)


# ---- our client, a server of openpi's kind -------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_server_of_openpis_kind(chunk: int) -> None:
    with openpi() as server:
        policy = from_address(f"{server.address}{QUERY}&chunk={chunk}", ACTION)
        assert (policy.context, policy.chunk) == (1, chunk)
        check_contract(policy)
        obs = torch.rand(40, 1, OBS)  # more than are asked at once
        wanted = (2 * (obs[:, 0, 2:4] - obs[:, 0, :2]) + torch.tensor([0.14, 0.06])).clamp(-1, 1)
        torch.testing.assert_close(ask(policy, obs)[:, 0], wanted)


@pytest.mark.parametrize("kind", ["memory", "bare"])
def test_a_server_with_a_memory_has_a_connection_for_every_row(kind: str) -> None:
    with openpi(kind) as server:
        policy = from_address(f"{server.address}{QUERY}&reset=1", ACTION)
        assert remembers(policy)
        check_contract(policy)


WRONG = {
    "nan": "not finite",
    "size": "shape .* instead of",
    "entry": "no 'actions'.*control",
    "fails": "(?s)failed: RuntimeError: no such camera.*Traceback",
    "dies": "No policy server answers|went away",
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_wrong_answers_are_caught_at_once(kind: str) -> None:
    with openpi(kind) as server:
        policy = from_address(f"{server.address}{QUERY}&chunk=2&patience=1", ACTION)
        with pytest.raises(UserError, match=WRONG[kind]):
            ask(policy, torch.rand(3, 1, OBS))


def test_chunks_that_are_too_short_or_that_nobody_named() -> None:
    with openpi() as server:
        with pytest.raises(UserError, match="chunk of 4 actions, 8 are to be executed"):
            ask(from_address(f"{server.address}{QUERY}&chunk=8", ACTION), torch.rand(1, 1, OBS))
        with pytest.raises(UserError, match=r"say how many.*chunk=4"):
            ask(from_address(f"{server.address}{QUERY}", ACTION), torch.rand(1, 1, OBS))
        with pytest.raises(UserError, match="say what its policy observes"):
            from_address(server.address, ACTION)


def test_addresses() -> None:
    real("websockets")
    assert is_place("ws://host:8000?prompt=x")
    assert not is_place("runs/ws")
    for address, reason in (
        ("ws://host", "no port"),
        ("ws://host:1?chunk=x", "cannot be understood"),
        ("ws://host:1?chunk=0", "chunk must be at least 1, got 0"),
        ("ws://host:1?chunk=-2", "at least 1, got -2"),
    ):
        with pytest.raises(UserError, match=reason):
            from_place(address, ACTION)
    with pytest.raises(UserError, match=r"No policy server answers at ws://127.0.0.1:9.*pidec serve"):
        served("ws://127.0.0.1:9", ACTION, patience=0.3)


# ---- a server that goes away ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "memory", "ours"])
def test_an_episode_survives_restarts(kind: str) -> None:
    with ours() if kind == "ours" else openpi(kind) as server:
        query = {"plain": f"{QUERY}&chunk=1", "memory": f"{QUERY}&reset=1", "ours": ""}[kind]
        policy, obs = from_address(server.address + query, ACTION), [episode(seed=k) for k in range(2)]
        undisturbed = [played(policy, o) for o in obs]
        assert remembers(policy) == (kind != "plain")
        asked, rows = session(policy), torch.arange(2)
        asked.reset(rows)
        again = threading.Timer(0.5, server.start)
        for t in range(STEPS):
            if t == 7:
                asked.reset(torch.tensor([1]))
            if t == 5:
                server.kill()
                again.start()
            at = [t, t - 7 if t >= 7 else t]
            back = [max(i + 1 - policy.context, 0) for i in at]
            windows = torch.stack(
                [o[[b, i]] if policy.context == 2 else o[[i]] for o, b, i in zip(obs, back, at, strict=True)]
            )
            answer = asked.act(windows, rows)
            torch.testing.assert_close(answer, torch.stack([undisturbed[k][at[k]] for k in range(2)]))
            if t == 5:
                again.join()


def test_a_connection_that_breaks_does_not_advance_the_memory_twice(our_server: Running) -> None:
    policy, obs, row = from_address(our_server.address, ACTION), episode(), torch.tensor([0])
    undisturbed = played(policy, obs)
    asked: Any = session(policy)
    asked.reset(row)
    for t in range(STEPS):
        if t % 3 == 2:
            asked._talks[0].link._socket.close()  # the server goes on, with another memory for the next connection
        answer = asked.act(obs[[max(t - 1, 0), t]][None], row)
        torch.testing.assert_close(answer[0], undisturbed[t])


def test_a_server_that_stays_away_is_told_of() -> None:
    with openpi("memory") as server:
        policy = from_address(f"{server.address}{QUERY}&reset=1&patience=1", ACTION)
        server.kill()
        with pytest.raises(UserError, match=r"It was there before.*--resume"):
            played(policy, episode())


@pytest.mark.parametrize(
    ("size", "parameters", "said"),
    [(OBS, "b", "hash of the parameters a before, b now"), (OBS + 1, "a", r"observations 6 before, 7 now")],
)
def test_a_server_that_comes_back_with_another_policy_is_refused(size: int, parameters: str, said: str) -> None:
    with ours() as server:
        policy, obs, row = from_address(server.address, ACTION), episode(), torch.tensor([0])
        asked: Any = session(policy)
        asked.reset(row)
        asked.act(obs[[0, 0]][None], row)
        server.kill()
        server.command = (*server.command[:2], str(size), parameters)
        server.start()
        for unsuspecting in (asked, session(policy)):  # one that was there before, and one that begins
            with pytest.raises(UserError, match=rf"came back with another policy \({said}\)"):
                unsuspecting.act(obs[[0, 1]][None], row)


# ---- our server ----------------------------------------------------------------------------------------------


def test_our_server_and_our_client_with_a_memory(our_server: Running) -> None:
    policy = from_address(our_server.address, ACTION)
    assert policy.context == 2
    check_contract(policy)
    with pytest.raises(UserError, match="answers with 2 actions, not 3"):
        from_address(our_server.address, 3)
    with pytest.raises(UserError, match="Observations have the size 6"):
        played(policy, episode(obs_size=5))


def test_what_a_served_policy_remembers_can_be_saved(our_server: Running) -> None:
    saved: Any = session(policy := from_address(our_server.address, ACTION))
    row, obs = torch.tensor([0]), episode()
    for t in range(4):
        saved.act(obs[[max(t - 1, 0), t]][None], row)
    other: Any = session(policy)
    other.restore(saved.state())
    torch.testing.assert_close(other.act(obs[[3, 4]][None], row), saved.act(obs[[3, 4]][None], row))


@pytest.mark.slow
def test_openpis_client_is_answered(folder: Path) -> None:
    """The client is written here, from the wire format alone."""
    with pidec_serve(folder) as server:
        from openpi_server import packb, unpackb
        from websockets.sync.client import connect

        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=30) as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        obs = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.0, -0.3]], dtype=np.float32)
        policy: Any = api.load(folder, 2)
        windows = torch.from_numpy(np.stack([obs[[0, 0]], obs[[0, 1]]]))
        wanted = policy.act(windows).numpy()
        with connect(server.address, compression=None, max_size=None) as socket, connect(server.address) as other:
            said = unpackb(socket.recv())["policy_decorator"]
            assert (said["action_size"], said["parameters"]) == (2, parameter_hash(policy))
            unpackb(other.recv())
            for _ in range(2):  # an episode, and another one after the reset
                for frame, action in zip(obs, wanted, strict=True):
                    socket.send(packb({"observation/state": frame.astype(np.float64), "prompt": "reach"}))
                    answer = unpackb(socket.recv())
                    np.testing.assert_allclose(answer["actions"], action, atol=1e-6)
                    assert answer["actions"].shape == (1, 2)
                    assert answer["server_timing"]["infer_ms"] > 0
                    other.send(packb({"state": obs[1], "other": np.zeros(3)}))  # has a history of its own
                    unpackb(other.recv())
                socket.send(packb({"endpoint": "reset"}))
                assert unpackb(socket.recv()) == {"status": "reset successful"}
            socket.send(packb({"observation/state": np.zeros(5)}))
            said = socket.recv()
            assert isinstance(said, str)
            assert "an array of shape (4,) in exactly one entry" in said
            with pytest.raises(Exception, match="1011"):
                socket.recv()
            other.send(packb({"state": obs[1]}))  # does not notice
            assert isinstance(other.recv(), bytes)


@pytest.mark.slow
def test_openpis_own_client_is_answered(folder: Path) -> None:
    """Its reset sends nothing, so what looks back begins anew in another connection only."""
    client = real("openpi_client.websocket_client_policy")
    with pidec_serve(folder) as server:
        policy: Any = api.load(folder, 2)
        obs = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.0, -0.3]])
        first, second = policy.act(torch.stack([obs[[0, 0]], obs[[0, 1]]])).numpy()
        begins_with_second = policy.act(obs[[1, 1]][None])[0].numpy()

        def asked(own: Any, frame: torch.Tensor) -> np.ndarray:
            return own.infer({"observation/state": frame.numpy(), "prompt": "reach"})["actions"]

        one = client.WebsocketClientPolicy("127.0.0.1", server.port)
        assert one.get_server_metadata()["policy_decorator"]["parameters"] == parameter_hash(policy)
        np.testing.assert_allclose(asked(one, obs[0]), first, atol=1e-6)
        one.reset()
        np.testing.assert_allclose(asked(one, obs[1]), second, atol=1e-6)
        other = client.WebsocketClientPolicy("127.0.0.1", server.port)
        np.testing.assert_allclose(asked(other, obs[1]), begins_with_second, atol=1e-6)
        with pytest.raises(RuntimeError, match=r"an array of shape \(4,\)"):
            asked(other, torch.zeros(5))


@pytest.fixture(scope="module")
def seeing() -> SeeingPolicy:
    torch.manual_seed(0)
    shapes = {"rgb": (3, 16, 16), "depth": (1, 16, 16)}
    policy = build("cnn", 2, 2, CNNConfig(width=8, context=2), shapes=shapes, eyes=EncoderConfig((4, 4), 4, features=8))
    assert isinstance(policy, SeeingPolicy)
    return policy.eval()


def pictures(*batch: int) -> Any:
    state, rgb = torch.rand(*batch, 2), torch.randint(256, (*batch, 3, 16, 16), dtype=torch.uint8)
    depth = torch.randint(3000, (*batch, 1, 16, 16), dtype=torch.int16)
    return together({"state": state, "rgb": rgb, "depth": depth}, ndim=len(batch))


@pytest.fixture(scope="module")
def seeing_server(seeing: SeeingPolicy) -> Iterator[str]:
    with in_a_thread(seeing, 2, 2, shapes=seeing.shapes) as address:
        yield address


def test_a_served_policy_that_sees_answers_our_client(seeing: SeeingPolicy, seeing_server: str) -> None:
    policy, windows = from_address(seeing_server, 2), pictures(3, 2)
    torch.testing.assert_close(ask(policy, windows), seeing.act(windows))
    for wrong, said in (
        (windows["state"], "looks at pictures: windows are a map of state, rgb, depth"),
        (windows.select("state", "rgb"), r"have to have depth, int16 \(K, To, 1, 16, 16\)"),
        (windows.clone().set("rgb", windows["rgb"].float()), r"have to have rgb, uint8 \(K, To, 3, 16, 16\)"),
    ):
        with pytest.raises(UserError, match=said):
            ask(from_address(seeing_server, 2), wrong)


def test_a_served_policy_that_sees_answers_openpis_clients(seeing: SeeingPolicy, seeing_server: str) -> None:
    real("msgpack")
    from openpi_server import packb, unpackb
    from websockets.sync.client import connect

    frames = pictures(2)
    parts = {name: x.numpy() for name, x in frames.items()}
    wanted = seeing.act(torch.stack([frames[[0, 0]], frames[[0, 1]]]))
    entries: dict[str, Any] = {"observation/state": parts["state"][0].astype(np.float64), "prompt": "reach"}
    first = entries | {"observation/image": parts["rgb"][0].transpose(1, 2, 0), "far": parts["depth"][0, 0, ..., None]}
    second = {"state": parts["state"][1], "rgb": parts["rgb"][1], "observation/depth": parts["depth"][1]}
    second |= {"other/rgb2": parts["rgb"][0]}  # of the same form, with another name
    with connect(seeing_server, compression=None) as socket:
        said = unpackb(socket.recv())["policy_decorator"]
        assert said["shapes"] == {"rgb": [3, 16, 16], "depth": [1, 16, 16]}
        for message, action in zip((first, second), wanted, strict=True):
            socket.send(packb(message))
            np.testing.assert_allclose(unpackb(socket.recv())["actions"], action, atol=1e-6)
        socket.send(packb({"state": parts["state"][0], "rgb": parts["rgb"][0].astype(np.float32)}))
        assert "rgb in exactly one entry, uint8 (3, 16, 16) or uint8 (16, 16, 3)" in str(socket.recv())


@pytest.mark.slow
def test_ctrl_c_ends_it_with_its_counts(folder: Path) -> None:
    with pidec_serve(folder, "--json") as server:
        ask(from_address(server.address, 2), torch.rand(3, 2, 4))
        server.process.send_signal(signal.SIGINT)
        out, _ = server.process.communicate(timeout=60)
        assert server.process.returncode == 0
        told = json.loads(out)
        assert (told["policy"], told["task"], told["connections"], told["answers"]) == ("mlp", "toy/reach", 1, 1)


def test_what_cannot_be_served_is_refused(
    folder: Path, our_server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folder), "--port", str(our_server.port)]) == 2
    assert main(["serve", str(folder), "--port", "70000"]) == 2
    assert main(["serve", "policy.onnx"]) == 2
    told = capsys.readouterr().err
    assert all(reason in told for reason in ("choose another --port", "must be in 0..65535", "give --task"))


# ---- refinement ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learns_at", [None, 100])
def test_what_is_served_must_stay_as_it_is_during_a_run(
    learns_at: int | None, steady: Any, make_config: Callable[..., Any]
) -> None:
    act, asked = type(steady).act, [0]

    def learning(window: torch.Tensor) -> torch.Tensor:
        asked[0] += len(window)
        if learns_at is not None and asked[0] > learns_at:
            torch.nn.init.zeros_(steady.linear.bias)
        return act(steady, window)

    steady.act = learning
    with in_a_thread(steady, 4, 2, parameters=lambda: parameters_of(steady)) as address:
        base, config = from_address(address, 2), make_config(total_steps=200, eval_episodes=4, test_episodes=4)
        before = parameter_hash(steady)
        assert parameters_of(base) == before
        if learns_at is None:
            assert refine(config, base, force=True)[0].summary["base_parameters_sha256"] == before
        else:
            with pytest.raises(UserError, match=rf"now serves another policy \(hash of the parameters {before} before"):
                refine(config, base, force=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "ours"])
def test_a_served_policy_is_refined_and_survives_a_restart(
    kind: str, make_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ours(obs_size=4) if kind == "ours" else openpi() as server:
        address = server.address + {"plain": f"{QUERY}&chunk=1", "ours": ""}[kind]
        restarted = threading.Event()

        def restart() -> None:
            while not (tmp_path / "run" / "metrics.jsonl").exists():
                time.sleep(0.02)
            server.kill()
            server.start()
            restarted.set()

        threading.Thread(target=restart).start()
        config = make_config(policy=address, total_steps=300, eval_episodes=8, test_episodes=8)
        with RunFolder.create(tmp_path / "run", config, tensorboard=False) as folder:
            refined, _ = refine(config, api.load(address, 2), folder, force=True)
        assert restarted.is_set()
        summary = refined.summary
        assert summary["base_deterministic"]
        assert summary["base_parameters_sha256"] == {"plain": None, "ours": "a"}[kind]
        if kind == "plain":
            timed_out = summary["base_queries"] - summary["decisions"] - config.envs
            assert 0 <= timed_out <= summary["episodes"]
            assert 0 < summary["base_success"] < 1
        words = ["evaluate", str(tmp_path / "run"), "--episodes", "8", "--workers", "0", "--quiet", "--json"]
        assert main(words) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["base"]["success_rate"] == summary["base_success"]
        assert told["refined"]["success_rate"] == summary["refined_success"]
