"""Reads files of `torch.save` without executing code in them: only tensors, numbers, strings and containers come out.

PyTorch's restricted unpickler (`weights_only=True`) reads them; nothing here turns it off.
"""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from gpt2core.errors import UserError
from gpt2core.importing.pickles import check_pickles

# What trainers store beside the weights: settings as objects, losses as NumPy numbers. They are read as placeholder
# objects; the class named in the file is never imported.
_HARMLESS = re.compile(
    r"(?:\w+\.)+(?:\w*(?:Config|Args|Arguments|Settings|HParams|Hyperparameters)|Namespace)"
    r"|numpy\.(?:dtype|ndarray)|numpy\.(?:_core|core)\.multiarray\.(?:scalar|_reconstruct)"
)
_HOW_TO = 'where it was made, run `torch.save(model.state_dict(), "weights.pth")` and import that file'


class Placeholder:
    """Replaces a class of the program that wrote the file; its state becomes attributes."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_torch_file(path: Path) -> Any:
    """The object in a file of `torch.save`, tensors on the CPU. Raises UserError for anything but plain data."""
    zipped = _is_archive(path)
    if zipped:
        _check_archive(path)
    check_pickles(path, zipped)
    allowed = _placeholders(path) if zipped else []
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on protocols of pickle, which the user cannot change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can make the reader raise nearly anything
        raise _refusal(path, error) from None


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a multi-part archive: opening it reports the damage
        return True


def _check_archive(path: Path) -> None:
    """Raises UserError for an archive that is no file of torch.save, or would grow when unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # undecodable names, offsets beyond the end ...: each raises its own error
        raise UserError(f"{path} is damaged or cut off; copy or download it again.") from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path} is a TorchScript program, not weights; {_HOW_TO}.")
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{path} is a zip archive, but not one of torch.save; unpack it and import what is inside.")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{path} holds compressed data, which torch.save never writes; {_HOW_TO}.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UserError(f"{path} claims to hold more bytes than it has; copy or download it again.")


def _placeholders(path: Path) -> list[Any]:
    """Placeholders for the allowed classes in the file. Raises UserError where it names others."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise _refusal(path, error) from None
    refused = [name for name in wanted if not _HARMLESS.fullmatch(name)]
    if refused:
        raise UserError(_not_plain(path, refused))
    # One class a name: the unpickler compares classes.
    return [(type(name.rpartition(".")[2], (Placeholder,), {}), name) for name in wanted]


def _not_plain(path: Path, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if any("modules." in name or name.startswith(("__main__.", "transformers.")) for name in names):
        return f"{path} is a whole pickled model ({shown}), which only its own program may load; {_HOW_TO}."
    return f"{path} asks for code to be run ({shown}) and is not read; {_HOW_TO}."


def _refusal(path: Path, error: Exception) -> UserError:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return UserError(_not_plain(path, [found[1]]))
    if isinstance(error, MemoryError):
        return UserError(f"{path} is damaged, or does not fit into this machine's memory.")
    return UserError(f"{path} is damaged, cut off, or no file of torch.save ({type(error).__name__}); fetch it again.")


def is_torch_file(start: bytes) -> bool:
    """Whether a file that starts so is a zip archive or a pickle."""
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
