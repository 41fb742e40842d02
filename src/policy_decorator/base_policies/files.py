"""Policies in files of other tools: TorchScript (.pt, .ts), torch.export (.pt2), ONNX (.onnx), robomimic (.pth).

What reading such a file can do: an ONNX file is a graph of operators and does nothing but compute. A .pt2 file is read
if it is no more than that, too (`exported`). TorchScript is a language of its own, which unpickles nothing, but has
operators that read and write files: like any program, it is only for those whose author one trusts. Pickles
(`torch.save`) are refused, but for checkpoints that hold nothing but data.
"""

import inspect
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_decorator.base_policies.answers import check_numbers, check_values
from policy_decorator.base_policies.entries import Keys
from policy_decorator.base_policies.exported import checked_archive
from policy_decorator.base_policies.external import CallablePolicy
from policy_decorator.base_policies.lerobot import is_lerobot_folder, load_lerobot
from policy_decorator.base_policies.robomimic import load_robomimic
from policy_decorator.errors import MissingExtra, UserError
from policy_decorator.memory import AnyPolicy

SCRIPTS = (".pt", ".ts", ".jit", ".torchscript")
SUFFIXES = (*SCRIPTS, ".pt2", ".onnx", ".pth")


def is_file(path: Path) -> bool:
    """Whether the name is that of a policy's file, or LeRobot's folder."""
    return path.suffix in SUFFIXES or (path.is_dir() and is_lerobot_folder(path))


def load_file(
    path: Path,
    action_size: int,
    *,
    device: torch.device,
    chunk: int | None = None,
    context: int | None = None,
    keys: Keys | None = None,
) -> AnyPolicy:
    """The policy in a file, on `device`.

    A graph of one input, (B, Do) or (B, To, Do), and one output, (B, Da) or (B, T, Da). `chunk`: how many of T actions
    are executed, None: all that the file says there are; `context`: To, where the file does not say. `keys` is for
    the named entries of LeRobot's and robomimic's policies.

    Raises:
        UserError: no such file, one that would do more than compute, or a policy of another task.
    """
    if not path.exists():
        raise UserError(f"There is no policy {path}.")
    if path.is_dir():
        return load_lerobot(path, action_size, device=device, keys=keys)
    if path.suffix == ".pth":
        return load_robomimic(path, action_size, device=device, keys=keys)
    sizes: dict[str, Any] = {"chunk": chunk, "context": context or 1, "device": device}
    if path.suffix in SCRIPTS:
        return CallablePolicy(_torchscript(path, device), action_size, arrays="torch", batched=True, **sizes)
    fn, taken, given = _exported(path, device) if path.suffix == ".pt2" else _onnx(path, device)
    if given and isinstance(given[-1], int) and given[-1] != action_size:
        raise UserError(f"{path} answers with {given[-1]} actions, {action_size} are needed: is it another task's?")
    if len(given) == 3 and isinstance(given[1], int):
        sizes["chunk"] = chunk or given[1]
    if len(taken) == 3 and isinstance(taken[1], int):
        sizes["context"] = taken[1]
    batched = _padded(fn, taken[0]) if taken and isinstance(taken[0], int) else fn
    return CallablePolicy(batched, action_size, arrays="torch", batched=True, behind=fn, **sizes)


Graph = tuple[Callable[[Tensor], Any], tuple[Any, ...], tuple[Any, ...]]
"""A function, the shape that it takes and the one that it gives; what the file leaves open is no int."""


def _torchscript(path: Path, device: torch.device) -> torch.nn.Module:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        inside = set()
    if "constants.pkl" not in inside:
        raise UserError(
            f"{path} is no TorchScript but a pickle, and reading one can do anything: write the policy with "
            "torch.jit.save, torch.export.save or as ONNX, or give the network itself to decorate(...)."
        )
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as TorchScript: {str(error).strip().splitlines()[-1]}") from None
    check_numbers(module)
    return module


def _exported(path: Path, device: torch.device) -> Graph:
    archive = checked_archive(path)
    try:
        program = torch.export.load(archive)
    except Exception as error:  # of many kinds, by a version of torch that cannot read it
        raise UserError(f"{path} cannot be read by torch {torch.__version__}: {error}") from None
    from torch.export.passes import move_to_device_pass

    program = move_to_device_pass(program, device)
    signature = program.graph_signature
    inputs, outputs = [str(name) for name in signature.user_inputs], [str(name) for name in signature.user_outputs]
    shapes = {
        node.name: tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if hasattr(node.meta.get("val"), "shape")
    }
    if len(inputs) != 1 or len(outputs) != 1 or not {inputs[0], outputs[0]} <= shapes.keys():
        raise UserError(
            f"{path} takes {len(inputs)} inputs and gives {len(outputs)}: a policy takes and gives one tensor."
        )
    unguarded = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    module = program.module(**unguarded)  # guards in a file are Python code
    check_numbers(module)
    return module, shapes[inputs[0]], shapes[outputs[0]]


def _onnx(path: Path, device: torch.device) -> Graph:
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("onnxruntime, which runs .onnx files,", "onnx") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    providers = [p for p in (*wanted, "CPUExecutionProvider") if p in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own kinds, which have no common ancestor but this
        raise UserError(f"{path} cannot be read as ONNX: {str(error).splitlines()[0]}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(
            f"{path} takes {len(inputs)} inputs and gives {len(outputs)}: a policy takes and gives one tensor."
        )
    _check_initialisers(path)
    kind = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}[inputs[0].type]

    def run(seen: Tensor) -> Tensor:
        (answer,) = session.run(None, {inputs[0].name: seen.cpu().numpy().astype(kind)})
        return torch.from_numpy(answer).to(seen.device)

    return run, tuple(inputs[0].shape), tuple(outputs[0].shape)


def _check_initialisers(path: Path) -> None:
    """As `check_numbers`, where the package onnx is installed: onnxruntime does not show what a graph computes with."""
    try:
        import onnx  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    given = [x for x in onnx.load(str(path)).graph.initializer if x.data_type in kinds]
    check_values(((x.name, torch.tensor(onnx.numpy_helper.to_array(x))) for x in given), str(path))


def _padded(fn: Callable[[Tensor], Any], size: int) -> Callable[[Tensor], Tensor]:
    """A function of batches of `size` as one of any, by asking in parts; the last is filled up with its last row."""

    def ask(seen: Tensor) -> Tensor:
        parts = [torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]) for x in seen.split(size)]
        return torch.cat([fn(part) for part in parts])[: len(seen)]

    return ask
