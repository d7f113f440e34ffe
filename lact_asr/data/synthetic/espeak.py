"""espeak-ng through ctypes: text to samples, 1.4 s of speech in 1.3 ms.

The library is the one in the wheel `espeakng-loader`, or else the system's `libespeak-ng`. It keeps
its state in globals (the phase of the voice even lives on between two sentences), so it is neither
thread-safe nor repeatable inside one process: use one Espeak per fresh process.
"""

import ctypes
import ctypes.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lact_asr.utils.errors import DataError

# speak_lib.h of 1.52
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback
_DO_NOT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: or a missing file ends the process
_UTF8 = 1
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_LONGEST_PATH = 120  # bytes; the library cuts paths at 160, file names included
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Espeak:
    """The library, initialized; `rate` is its sampling rate in Hz (22,050)."""

    def __init__(self) -> None:
        self._library, data = _load()
        self._short = tempfile.TemporaryDirectory(prefix="espeak")
        if data and len(str(data)) > _LONGEST_PATH:
            (Path(self._short.name) / data.name).symlink_to(data)
            data = Path(self._short.name) / data.name
        path = str(data).encode() if data else None
        self.rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, path, _DO_NOT_EXIT)
        if self.rate <= 0:
            raise DataError(f"espeak-ng does not find its voices in {data or 'the system folders'}")
        self._heard: list[NDArray[Any]] = []
        self._callback = _CALLBACK(self._hear)  # kept: ctypes does not
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, speed: int, pitch: int, seed: int) -> NDArray[Any]:
        """int16 [samples] at `rate` Hz; `speed` in words a minute, `pitch` 0 to 99."""
        library = self._library
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DataError(f"this espeak-ng has no voice {voice!r}")
        if hasattr(library, "espeak_ng_SetRandSeed"):  # since 1.52; breathy voices are noise
            library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        library.espeak_SetParameter(_RATE, speed, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        self._heard.clear()
        data = text.encode()
        status = library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        if status != 0 or not self._heard:
            raise DataError(f"espeak-ng said nothing for {text!r} (status {status})")
        return np.concatenate(self._heard)

    def _hear(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on


def _load() -> tuple[ctypes.CDLL, Path | None]:
    """The library and its data folder (None: where the library itself looks)."""
    try:
        import espeakng_loader

        return (
            ctypes.CDLL(espeakng_loader.get_library_path()),
            Path(espeakng_loader.get_data_path()),
        )
    except (ImportError, OSError) as error:
        system = ctypes.util.find_library("espeak-ng")
        if system is None:
            raise DataError(
                "no espeak-ng: install the package espeakng-loader (pip) or libespeak-ng1 (Debian)"
                f" ({error})"
            ) from error
        return ctypes.CDLL(system), None
