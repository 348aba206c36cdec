"""A PTX emulator: runs a kernel's PTX and launch bytes on a machine with no GPU, and is stricter than one.

    from cute_kernels.emulator import Device, EmulationError

    device = Device(arch="sm_100a", num_sms=8, schedule="random", seed=0)
    device.register(array.ctypes.data, array.nbytes, "A")
    report = device.launch(ptx, None, grid=(1, 1, 1), block=(128, 1, 1), params=[pointer_bytes])

`run(compiled, *args)` calls a function that the CuTe DSL compiled, and `Device.launch_all` runs several kernels side by
side. It knows nothing of the kernels of this project, and needs NumPy alone (`run` needs the DSL and a C compiler).
"""

from cute_kernels.emulator.device import Device, Launch
from cute_kernels.emulator.errors import EmulationError, Place, Report
from cute_kernels.emulator.front_door import DeviceTensor, run
from cute_kernels.emulator.ptx import PtxError
from cute_kernels.emulator.tensor_map import TensorMapError

__all__ = [
    "Device",
    "DeviceTensor",
    "EmulationError",
    "Launch",
    "Place",
    "PtxError",
    "Report",
    "TensorMapError",
    "run",
]
