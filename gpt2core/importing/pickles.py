"""Pickles that would grow when read: what PyTorch's restricted unpickler allows, and weights never hold."""

import codecs
import pickletools
import zipfile
from pathlib import Path
from typing import IO

from gpt2core.errors import UserError

# Each makes memory of any size from a number or from one element.
_GROWING = {
    "builtins bytearray",
    "__builtin__ bytearray",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor",
    "torch._utils _rebuild_device_tensor_from_numpy",
}
_LONGEST_CODEC = 20  # characters of its name
_PICKLES = 4  # of the older format of torch.save: a number, a version, the system's sizes, the object


def check_pickles(path: Path, zipped: bool) -> None:
    """Raises UserError where a pickle in a file of `torch.save` asks for memory beyond what it holds."""
    if not zipped:
        with path.open("rb") as handle:
            for _ in range(_PICKLES):
                _check(path, handle)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as handle:
                        _check(path, handle)
    except UserError:
        raise
    except Exception as error:  # places beyond the end, other magic numbers ...: each raises its own error
        raise UserError(f"{path} is damaged or cut off ({type(error).__name__}); copy or download it again.") from None


def _check(path: Path, handle: IO[bytes]) -> None:
    encodes, names = False, set()
    try:
        for code, argument, _ in pickletools.genops(handle):
            if code.name == "GLOBAL" and argument in _GROWING:
                raise UserError(f"{path} asks for memory ({argument}), which weights never do; import other weights.")
            encodes = encodes or argument == "_codecs encode"
            if isinstance(argument, str) and len(argument) < _LONGEST_CODEC and "." not in argument:
                names.add(argument)
    except UserError:
        raise
    except Exception:  # damage: the unpickler reports it
        return
    if encodes and any(map(_is_packing, names)):
        raise UserError(
            f"{path} asks for bytes to be packed or unpacked, which weights never do; import other weights."
        )


def _is_packing(name: str) -> bool:
    """Whether `name` is a codec from bytes to bytes, such as hex, which can be applied again and again."""
    try:
        return not codecs.lookup(name)._is_text_encoding  # what `bytes.decode` itself asks
    except (LookupError, ValueError):
        return False
