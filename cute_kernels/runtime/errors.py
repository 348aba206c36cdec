"""What can go wrong before a kernel runs, one class for each thing a caller can do about it.

Every message says what was given, what is supported, and what to do. All are raised before anything is
launched or written.
"""


class ArgumentError(ValueError):
    """The tensors or options of a call are not what the operation takes."""


class KernelNotFoundError(RuntimeError):
    """The cubin folder holds no kernel for this operation on this architecture."""


class ManifestError(RuntimeError):
    """The cubin folder is missing, unreadable, or its files are not the ones that its manifest describes."""


class DriverError(RuntimeError):
    """The CUDA driver refused a call.

    status: the CUresult as an int.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
