"""Policies in files: TorchScript, torch.export and ONNX, and files that would do more than compute."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import ACTION, OBS, check_contract, episode, played, real
from torch import Tensor, nn
from torch._export.serde.schema import SCHEMA_VERSION

from policy_decorator import decorate
from policy_decorator.base_policies.exported import checked_archive
from policy_decorator.base_policies.files import is_file, load_file
from policy_decorator.base_policies.places import absolute, from_place, is_place
from policy_decorator.chunks import chunk_of
from policy_decorator.cli import evaluate
from policy_decorator.errors import UserError

CPU = torch.device("cpu")


class Net(nn.Module):
    """(B, Do) -> (B, Da), or with `chunk` (B, chunk, Da), or with `context` of (B, context, Do)."""

    def __init__(self, chunk: int = 0, context: int = 0) -> None:
        super().__init__()
        self.context, self.chunk = context, chunk
        self.register_buffer("mean", torch.full((OBS,), 0.1))
        self.linear = nn.Linear(OBS * max(context, 1), ACTION * max(chunk, 1))

    def forward(self, seen: Tensor) -> Tensor:
        answer = torch.tanh(2 * self.linear((seen - self.get_buffer("mean")).flatten(1)))
        return answer.unflatten(1, (self.chunk, ACTION)) if self.chunk else answer


def sample(net: Net, rows: int = 2) -> Tensor:
    return torch.zeros((rows, net.context, OBS) if net.context else (rows, OBS))


def script(net: Net, folder: Path) -> Path:
    traced: Any = torch.jit.trace(net, sample(net))
    traced.save(folder / "policy.pt")
    return folder / "policy.pt"


def export(net: Net, folder: Path, fixed: bool = False) -> Path:
    rows = None if fixed else {0: torch.export.Dim("rows", min=1)}
    torch.export.save(torch.export.export(net, (sample(net),), dynamic_shapes=(rows,)), folder / "policy.pt2")
    return folder / "policy.pt2"


def onnx(net: Net, folder: Path, fixed: bool = False) -> Path:
    real("onnxruntime")
    real("onnxscript")
    rows = None if fixed else ({0: torch.export.Dim("rows", min=1)},)
    torch.onnx.export(net, (sample(net),), folder / "policy.onnx", dynamic_shapes=rows, dynamo=True, verbose=False)
    return folder / "policy.onnx"


WRITERS = [script, export, onnx]


@pytest.mark.parametrize("write", WRITERS)
def test_single_actions(write: Callable[..., Path], tmp_path: Path) -> None:
    net = Net().eval()
    policy = load_file(write(net, tmp_path), ACTION, device=CPU)
    check_contract(policy)
    torch.testing.assert_close(played(policy, episode())[:, 0], net(episode()).detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("write", WRITERS)
def test_chunks_and_histories(write: Callable[..., Path], tmp_path: Path) -> None:
    net = Net(chunk=4, context=3).eval()
    policy = load_file(write(net, tmp_path), ACTION, device=CPU, chunk=2, context=3)
    assert (policy.context, getattr(policy, "chunk", 0)) == (3, 2)
    check_contract(policy)
    window = torch.rand(5, 3, OBS)
    torch.testing.assert_close(policy.act(window), net(window)[:, :2].detach(), atol=1e-5, rtol=0)  # pyright: ignore


@pytest.mark.parametrize("write", [export, onnx])
def test_what_the_file_says_need_not_be_said_again(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(Net(chunk=4, context=3).eval(), tmp_path)
    policy = load_file(path, ACTION, device=CPU)
    assert (policy.context, getattr(policy, "chunk", 0)) == (3, 4)
    with pytest.raises(UserError, match="answers with 2 actions, 3 are needed"):
        load_file(path, 3, device=CPU)


@pytest.mark.parametrize("write", [export, onnx])
def test_a_fixed_number_of_rows_is_filled_up(write: Callable[..., Path], tmp_path: Path) -> None:
    net = Net().eval()
    policy = load_file(write(net, tmp_path, fixed=True), ACTION, device=CPU)
    check_contract(policy)


def test_a_chunk_that_nobody_named_or_that_is_too_short(tmp_path: Path) -> None:
    path = script(Net(chunk=4).eval(), tmp_path)
    with pytest.raises(UserError, match=r"chunk of 4 actions: say how many.*chunk=4"):
        load_file(path, ACTION, device=CPU).act(episode()[:, None])  # pyright: ignore
    with pytest.raises(UserError, match="chunk of 4 actions, 8 are to be executed"):
        load_file(path, ACTION, device=CPU, chunk=8).act(episode()[:, None])  # pyright: ignore


def test_another_observation_and_numbers_that_are_none(tmp_path: Path) -> None:
    policy: Any = load_file(script(Net().eval(), tmp_path), ACTION, device=CPU)
    with pytest.raises(UserError, match="cannot be asked"):
        policy.act(torch.zeros(2, 1, OBS + 1))
    broken = Net()
    broken.get_buffer("mean")[0] = float("inf")
    for write in (script, export):
        with pytest.raises(UserError, match="mean of the policy is not finite"):
            load_file(write(broken, tmp_path), ACTION, device=CPU)


def test_numbers_of_an_onnx_file_that_are_none(tmp_path: Path) -> None:
    real("onnxruntime")
    package = real("onnx")
    helper, kind = package.helper, package.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, ["rows", ACTION]) for name in ("seen", "given")]
    node = helper.make_node("Sub", ["seen", "net.mean"], ["given"])
    for bad in ("nan", "inf"):
        mean = helper.make_tensor("net.mean", kind, [ACTION], [0.0, float(bad)])
        graph = helper.make_graph([node], "policy", ends[:1], ends[1:], initializer=[mean])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        package.save(model, tmp_path / "policy.onnx")
        with pytest.raises(UserError, match=r"net\.mean of .*policy\.onnx is not finite"):
            load_file(tmp_path / "policy.onnx", ACTION, device=CPU)


def test_names() -> None:
    assert all(is_file(Path(f"policy{suffix}")) for suffix in (".pt", ".pt2", ".onnx", ".pth", ".ts"))
    assert not is_file(Path("runs/base"))
    with pytest.raises(UserError, match="There is no policy"):
        load_file(Path("missing.onnx"), ACTION, device=CPU)


def test_options_behind_a_path_that_is_not_the_shortest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script(Net(chunk=3).eval(), tmp_path)
    for place in ("./policy.pt?chunk=3", f"{tmp_path}/policy.pt?chunk=3"):
        assert is_place(place)
        assert chunk_of(from_place(place, ACTION)) == 3
        assert absolute(place) == f"{tmp_path}/policy.pt?chunk=3"
    assert absolute("ws://host:8000") == "ws://host:8000"
    assert absolute("yours") == "yours"


def test_a_run_knows_its_file_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    traced: Any = torch.jit.trace(nn.Sequential(nn.Linear(4, 2), nn.Tanh()), torch.zeros(2, 4))
    traced.save("policy.pt")
    small: dict[str, Any] = {
        "total_steps": 300,
        "warmup_steps": 100,
        "envs": 4,
        "workers": 0,
        "eval_episodes": 4,
        "test_episodes": 4,
    }
    run = decorate("./policy.pt", "toy/reach", out="run", force=True, horizon=100, **small)
    monkeypatch.chdir(elsewhere)
    options = evaluate.parse(["../run", "--episodes", "4", "--workers", "0", "--quiet"])
    found = evaluate.run(options).value
    assert found["refined"]["success_rate"] == run.summary["refined_success"]
    (tmp_path / "policy.pt").rename(tmp_path / "moved.pt")
    with pytest.raises(UserError, match=r"There is no policy .*policy\.pt"):
        evaluate.run(options)


# ---- files that would do more than compute --------------------------------------------------------------------


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trapped"),))


def pickled() -> bytes:
    torch.save(Trap(), data := io.BytesIO())
    return data.getvalue()


Members = list[tuple[str, bytes]]
Change = Callable[[Members], Members]


def rewritten(path: Path, change: Change) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(members):
            archive.writestr(name, data)


def each(change: Callable[[str, bytes], bytes]) -> Change:
    return lambda members: [(name, change(name, data)) for name, data in members]


def in_graph(old: str, new: str) -> Change:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        assert old in data.decode()
        return data.decode().replace(old, new).encode()

    return each(change)


def with_pickled_weight(name: str, data: bytes) -> bytes:
    if name.endswith("weights_config.json"):
        card = json.loads(data)
        card["config"]["linear.weight"]["use_pickle"] = True
        return json.dumps(card).encode()
    return pickled() if name.endswith("weights/weight_0") else data


def with_another(name: str, first: bool = False) -> Change:
    """One more member below the folder, before or after the others: torch's reader overlooks upper and lower case."""

    def change(members: Members) -> Members:
        root = members[0][0].partition("/")[0]
        more = [(f"{root}/{name}", pickled())]
        return more + members if first else members + more

    return change


def as_before_torch_2_9(members: Members) -> Members:
    torch.save(((torch.zeros(2, OBS),), {}), inputs := io.BytesIO())
    torch.save({}, constants := io.BytesIO())
    graph = next(data for name, data in members if name.endswith("models/model.json"))
    return [
        ("version", ".".join(map(str, SCHEMA_VERSION)).encode()),
        ("serialized_exported_program.json", graph),
        ("serialized_state_dict.json", pickled()),
        ("serialized_constants.json", constants.getvalue()),
        ("serialized_example_inputs.pt", inputs.getvalue()),
    ]


CHANGES: dict[str, Change] = {
    "sample inputs": each(lambda name, data: pickled() if name.endswith("sample_inputs/model.pt") else data),
    "weights": each(with_pickled_weight),
    "operator": in_graph("torch.ops.aten.tanh.default", "torch.hub.os.system"),
    "shape": in_graph("Symbol('s", "__import__('os').system('touch trapped') or Symbol('s"),
    "name": in_graph('"name": "seen"', '"name": "seen=__import__(1)"'),
    "the old layout": as_before_torch_2_9,
    "the old layout beside the new": lambda members: members + as_before_torch_2_9(members),
    "sample inputs twice": with_another("data/sample_inputs/model.pt"),
    "sample inputs in capitals": with_another("data/sample_inputs/MODEL.PT"),
    "sample inputs in capitals first": with_another("data/sample_inputs/Model.pt", first=True),
    "weights of another layout": with_another("data/weights/model.pt"),
    "objects": with_another("data/constants/opaque_obj_0"),
    "anything else": with_another("data/mtia"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", sorted(CHANGES))
def test_a_program_that_does_more_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = export(Net().eval(), tmp_path)
    checked_archive(path)
    rewritten(path, CHANGES[what])
    with pytest.raises(UserError, match=r"is not loaded: .*(pickle|operator|shape|name|does not write|an object)"):
        load_file(path, ACTION, device=CPU)
    assert not Path("trapped").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
def test_pickles_and_other_files_are_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"policy{suffix}"
    for content in (pickled(), b"nothing", b""):
        path.write_bytes(content)
        with pytest.raises(UserError):
            load_file(path, ACTION, device=CPU)
    assert not Path("trapped").exists()
