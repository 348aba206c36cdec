"""Machine code of a cubin, read through NVIDIA's disassembler, and what kinds of instructions it holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cute_kernels.build.errors import EXTRA, BuildError

# Address, optional predicate, opcode, and the rest up to the semicolon.
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*)", re.M)

# Opcode without its modifiers -> class. An opcode may start with U (uniform datapath) and keep its class.
CLASSES: dict[str, str] = {
    "MMA": "HMMA QMMA OMMA IMMA DMMA BMMA HGMMA QGMMA IGMMA UTCHMMA UTCQMMA UTCOMMA UTCIMMA UTCMMA",
    "TMA": "UTMALDG UTMASTG UTMAREDG UTMAPF UTMACMDFLUSH UTMACCTL UBLKCP UBLKPF UBLKRED LDGSTS",
    "TMEM": "LDTM STTM UTCCP UTCSHIFT",
    "LDS/STS": "LDS STS LDSM STSM STAS ATOMS",
    "LDG/STG": "LDG STG LD ST RED REDG ATOM ATOMG REDAS",
    "local": "LDL STL",
    "const": "LDC ULDC LDCU",
    "int": "IADD IADD3 IADD32I IMAD LEA LOP LOP3 SHF SHL SHR PRMT IABS IMNMX VIADD VIMNMX VIMNMX3 VIADDMNMX "
    "IDP POPC FLO BREV SGXT BMSK VABSDIFF VABSDIFF4 ISETP PLOP3 PSETP SEL P2R R2P VHMNMX",
    "fp": "FADD FMUL FFMA FMNMX FMNMX3 FSETP FSEL FADD2 FMUL2 FFMA2 FADD32I FMUL32I FFMA32I FCHK FSWZADD "
    "MUFU HADD2 HMUL2 HFMA2 HMNMX2 HSETP2 HSET2 DADD DMUL DFMA DSETP",
    "convert": "F2F F2FP F2I I2F I2FP F2IP I2I I2IP FRND",
    "move": "MOV MOV32I UMOV R2UR S2R S2UR CS2R CS2UR UP2UR UR2UP B2R R2B MOVM SHFL MATCH REDUX CREDUX VOTE "
    "VOTEU",
    "branch": "BRA BRX BRXU JMP JMX JMXU BSSY BSYNC BREAK CALL RET EXIT KILL BMOV YIELD WARPSYNC WARPSYNCALL "
    "NANOSLEEP BPT",
    "sync": "SYNCS BAR DEPBAR LDGDEPBAR MEMBAR FENCE ARRIVES UCGABAR UCGABAR_ARV UCGABAR_WAIT CCTL ERRBAR "
    "CGAERRBAR ELECT ACQBULK PREEXIT UTCBAR UTCATOMSWS UVIRTCOUNT USETMAXREG WARPGROUP WARPGROUPDEPBAR "
    "ACQSHMINIT",
    "NOP": "NOP",
}
CLASS_OF: dict[str, str] = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes.split()}


class Instruction(NamedTuple):
    """opcode: with modifiers, e.g. "STL.128"; rest: operands and remarks, e.g. (*"SpillRefill"*)."""

    opcode: str
    rest: str


@cache
def tool(name: str) -> str:
    """Path of nvdisasm or cuobjdump: out of the wheels of the `build` extra, else from PATH."""
    for folder in map(Path, sys.path):
        for candidate in sorted(folder.glob(f"nvidia/cu*/bin/{name}"), reverse=True):
            return str(candidate)
    found = shutil.which(name)
    if found is None:
        raise BuildError(f"{name} is not installed; {EXTRA}")
    return found


def run_tool(name: str, *arguments: str) -> str:
    """What the tool printed; BuildError with its complaint where it fails."""
    result = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(
            f"{name} {' '.join(arguments)} failed: {result.stderr.strip() or result.stdout.strip()}"
        )
    return result.stdout


def disassemble(cubin: Path) -> list[Instruction]:
    """All instructions of a cubin in address order, without the no-ops that pad its end."""
    text = run_tool("nvdisasm", "-c", str(cubin))
    instructions = [Instruction(opcode, rest.strip()) for opcode, rest in INSTRUCTION.findall(text)]
    while instructions and instructions[-1].opcode == "NOP":
        instructions.pop()
    if not instructions:
        raise BuildError(f"nvdisasm found no instruction in {cubin}")
    return instructions


def class_of(opcode: str) -> str:
    """Class of an opcode with its modifiers; "other" for one that CLASSES does not list."""
    if opcode.startswith("IMAD.MOV"):
        return "move"
    base = opcode.split(".")[0]
    return CLASS_OF.get(base) or CLASS_OF.get(base.removeprefix("U"), "other")


def mix(instructions: list[Instruction]) -> Counter[str]:
    """Number of instructions in each class."""
    return Counter(class_of(instruction.opcode) for instruction in instructions)
