"""Components of a Diffusers folder, in f32, within little memory: one is in memory at a time, and one that is too large
is read block by block, again at every call."""
import importlib
import json

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn

# What published files have before or instead of the names that the classes use.
OTHER_NAMES = [("", "vision_model."), ("", "text_model."), ("", "model."), ("encoder.embed_tokens.", "shared."), ("shared.", "encoder.embed_tokens.")]


class Files:
    """The tensors of a folder's safetensors files by name."""

    def __init__(self, folder):
        index = sorted(folder.glob("*.safetensors.index.json"))
        if index:
            self.place = {name: folder / file for name, file in json.loads(index[0].read_text())["weight_map"].items()}
        else:
            files = sorted(folder.glob("*.safetensors"))
            if len(files) != 1:
                raise SystemExit(f"{folder}: expected one .safetensors file or an index of several, found {len(files)}")
            with safe_open(files[0], "pt") as file:
                self.place = {name: files[0] for name in file.keys()}
        self.folder, self.read_names = folder, set()

    def known(self, name):
        """The name in the files of what the class calls `name`."""
        for ours, theirs in [("", "")] + OTHER_NAMES:
            if name.startswith(ours) and theirs + name[len(ours):] in self.place:
                return theirs + name[len(ours):]
        raise SystemExit(f"{self.folder}: no file has {name}")

    def read(self, name):
        name = self.known(name)
        self.read_names.add(name)
        with safe_open(self.place[name], "pt") as file:
            return file.get_tensor(name).float()


class Lazy:
    """A module whose weights are read when it is called."""

    in_memory = None  # the component that is

    def __init__(self, module, files, most_bytes):
        self.module, self.files = module, files
        self.tensors = {}  # by module: names of its own, and in the files
        kept = set(module.state_dict().keys())
        for path, child in module.named_modules():
            own = [*child._parameters, *child._buffers]
            self.tensors[child] = [(name, f"{path}.{name}".lstrip(".")) for name in own if f"{path}.{name}".lstrip(".") in kept]
        bytes = 4 * sum(tensor.numel() for tensor in module.state_dict().values())
        self.is_streamed = bytes > most_bytes
        pieces = list(dict.fromkeys(blocks(module))) if self.is_streamed else [module]
        inside = {child for piece in pieces for child in piece.modules()}
        self.beside = [child for child in module.modules() if child not in inside]
        self.free()
        for piece in pieces:
            piece.register_forward_pre_hook(lambda piece, _: self.load(piece.modules()))
            if self.is_streamed:
                piece.register_forward_hook(lambda piece, *_: self.drop(piece.modules()))
        module.register_forward_pre_hook(lambda *_: self.take_over())

    def take_over(self):
        if Lazy.in_memory not in (None, self):
            Lazy.in_memory.free()
        Lazy.in_memory = self
        self.load(self.beside)

    def load(self, modules):
        for module in modules:
            for name, path in self.tensors[module]:
                if module._parameters.get(name, module._buffers.get(name)).numel() == 0:
                    put(module, name, self.files.read(path))

    def drop(self, modules):
        for module in modules:
            for name, _ in self.tensors[module]:
                put(module, name, torch.empty(0))

    def free(self):
        self.drop(self.module.modules())


def put(module, name, tensor):
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[name] = tensor


def blocks(module):
    """The members of its lists, and what is beside them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(isinstance(inside, nn.ModuleList) for inside in child.modules()):
            yield from blocks(child)
        else:
            yield child


def empty(folder, library, name):
    """A component without its weights."""
    cls = getattr(importlib.import_module(library), name)
    with init_empty_weights():
        if library == "diffusers":
            return cls.from_config(cls.load_config(folder)).eval()
        return cls(cls.config_class.from_pretrained(folder)).eval()


def component(folder, library, name, most_bytes):
    return Lazy(empty(folder, library, name), Files(folder), most_bytes)


def whole(folder, library, name):
    """A component that is called by other ways than `forward`: all of it, at once."""
    module, files = empty(folder, library, name), Files(folder)
    for path, child in list(module.named_modules()):
        for own in [*child._parameters, *child._buffers]:
            if f"{path}.{own}".lstrip(".") in module.state_dict():
                put(child, own, files.read(f"{path}.{own}".lstrip(".")))
    return module
