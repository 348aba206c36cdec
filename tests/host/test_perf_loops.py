"""The loop finder on small disassemblies whose loops are known."""

from __future__ import annotations

from perf.sass_loops import loops

HEAD = '\t.section\t.text.kernel,"ax",@progbits\nkernel:\n.text.kernel:\n'


def listing(text: str) -> str:
    """What nvdisasm prints: an address before each instruction; labels end in a colon."""
    rows, address = [], 0
    for row in filter(None, map(str.strip, text.splitlines())):
        if row.endswith(":"):
            rows.append(row)
        else:
            rows.append(f"        /*{address:04x}*/                   {row} ;")
            address += 16
    return HEAD + "\n".join(rows) + "\n"


TILES = """
    S2R R0, SR_TID.X
    @P0 BRA `(.L_x_9)
.L_x_1:
    UIADD3 UR4, UPT, UPT, UR4, 0x1, URZ
.L_x_2:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR9+0x10], R0
    @!P1 BRA `(.L_x_5)
.L_x_3:
    UTCCP.T.S.4x32dp128bit tmem[UR4], gdesc[UR10]
    UTCOMMA gdesc[UR44], gdesc[UR18], tmem[UR43]
    @!UPT UIADD3 URZ, URZ, URZ, URZ
    UTCOMMA gdesc[UR44], gdesc[UR18], tmem[UR43]
    BRA.U UP0, `(.L_x_2)
    IADD3 R4, R4, 0x1, RZ
    @!P1 BRA `(.L_x_1)
    EXIT
.L_x_5:
    IMAD.U32 R3, RZ, RZ, UR9
    SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R3+0x10], R0
    @!P1 BRA `(.L_x_5)
    BRA `(.L_x_3)
.L_x_9:
    LDTM.x32 R4, tmem[UR6]
    LDTM.x16 R4, tmem[UR6]
    STS.128 [R4], R8
    @P2 BRA `(.L_x_9)
    EXIT
.L_x_10:
    BRA `(.L_x_10)
"""


def test_nested_loops_are_named_by_what_they_hold_and_counted_apart() -> None:
    found = {loop.name: loop for loop in loops(listing(TILES))}
    assert set(found) == {"mma / outer", "mma", "epilogue"}
    assert (found["mma / outer"].depth, found["mma"].depth, found["epilogue"].depth) == (0, 1, 0)
    # The retry behind EXIT is not on the way of a turn; the instruction that never runs is a filler.
    assert dict(found["mma"].counts) == {"sync": 1, "branch": 2, "TMEM": 1, "MMA": 2, "NOP": 1}
    assert found["mma"].mma_share == 2 / 7
    assert dict(found["mma / outer"].counts) == {"uniform": 1, "int": 1, "branch": 1}
    assert dict(found["epilogue"].counts) == {"TMEM": 2, "LDS/STS": 1, "branch": 1}
    assert found["epilogue"].tmem_columns == 48


def test_a_poll_in_line_is_passed_once() -> None:
    text = """
    NOP
.L_x_0:
    IADD3 R0, R0, 0x1, RZ
.L_x_1:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R3], R0
    @!P1 BRA `(.L_x_1)
    UTMALDG.2D [UR16], [UR12]
    @P0 BRA `(.L_x_0)
    EXIT
"""
    (loop,) = loops(listing(text))
    assert (loop.name, loop.instructions) == ("tma load", 5)


def test_work_behind_the_loop_counts() -> None:
    text = """
    NOP
.L_x_0:
    HMMA.16816.F32.BF16 R0, R4, R8, R0
    @P1 BRA `(.L_x_2)
.L_x_1:
    @P0 BRA `(.L_x_0)
    EXIT
.L_x_2:
    LDSM.16.M88.4 R4, [R20]
    BRA `(.L_x_1)
"""
    (loop,) = loops(listing(text))
    assert dict(loop.counts) == {"MMA": 1, "branch": 3, "LDS/STS": 1}


RARE = """
    NOP
.L_x_0:
    LDTM.x32 R4, tmem[UR6]
    VOTE.ANY P0, P0
    @!P0 BRA `(.L_x_1)
    STG.E [R4], R0
    STG.E [R4], R0
.L_x_1:
    @P1 BRA `(.L_x_2)
    UTMASTG.2D [UR16], [UR12]
    BRA `(.L_x_3)
.L_x_2:
    NOP
.L_x_3:
    @P2 BRA `(.L_x_0)
    EXIT
"""


def test_the_least_of_a_turn_is_the_shortest_way_by_all_its_work() -> None:
    """Neither by the stores that few turns come to, nor past the TMA."""
    (loop,) = loops(listing(RARE))
    assert (loop.instructions, loop.least) == (10, 7)


def test_the_least_is_all_where_no_way_passes_all_work() -> None:
    (loop,) = loops(listing(RARE.replace("    NOP\n.L_x_3", "    UTMASTG.2D [UR16], [UR12]\n.L_x_3")))
    assert loop.least == loop.instructions == 10


def test_the_least_passes_inner_loops_that_have_work() -> None:
    text = """
    NOP
.L_x_0:
    IADD3 R0, R0, 0x1, RZ
    @P1 BRA `(.L_x_2)
    IADD3 R0, R0, 0x1, RZ
.L_x_1:
    UTMALDG.2D [UR16], [UR12]
    @P0 BRA `(.L_x_1)
    IADD3 R0, R0, 0x1, RZ
.L_x_2:
    @P2 BRA `(.L_x_0)
    EXIT
"""
    found = {loop.name: (loop.instructions, loop.least) for loop in loops(listing(text))}
    assert found == {"tma load / outer": (5, 5), "tma load": (2, 2)}
    assert loops(listing(text.replace("UTMALDG.2D [UR16], [UR12]", "LDG.E R0, [R2]")))[0].least == 3


def test_a_loop_around_another_of_its_role_is_its_outer_one() -> None:
    """Whatever it does besides: no turn of it is one of the loop inside."""
    text = """
    NOP
.L_x_0:
    UTMALDG.2D [UR16], [UR12]
    @P0 BRA `(.L_x_0)
    UTMALDG.2D [UR16], [UR12]
    IADD3 R0, R0, 0x1, RZ
    @P2 BRA `(.L_x_0)
    EXIT
"""
    (loop,) = loops(listing(text))
    assert (loop.name, loop.instructions) == ("tma load", 5)  # one header: one loop, whichever way round
    around = text.replace("    NOP\n.L_x_0:", "    NOP\n.L_x_1:\n    NOP\n.L_x_0:").replace(
        "@P2 BRA `(.L_x_0)", "@P2 BRA `(.L_x_1)"
    )
    found = {loop.name: loop.instructions for loop in loops(listing(around))}
    assert found == {"tma load / outer": 4, "tma load": 2}


def test_a_loop_entered_in_its_middle_is_found() -> None:
    text = """
    @P1 BRA `(.L_x_1)
.L_x_0:
    LDG.E R0, [R2]
.L_x_1:
    STG.E [R4], R0
    @P0 BRA `(.L_x_0)
    EXIT
"""
    (loop,) = loops(listing(text))
    assert (loop.name, loop.instructions) == ("global", 3)


def test_loops_of_one_kind_are_numbered_in_the_order_of_their_addresses() -> None:
    text = """
    NOP
.L_x_0:
    LDGSTS.E.BYPASS.128 [R0], [R2]
    @P0 BRA `(.L_x_0)
.L_x_1:
    LDGSTS.E.BYPASS.128 [R0], [R2]
    IADD3 R0, R0, 0x1, RZ
    @P0 BRA `(.L_x_1)
    EXIT
"""
    assert [(loop.name, loop.instructions) for loop in loops(listing(text))] == [
        ("cp.async", 2),
        ("cp.async 2", 3),
    ]


def test_straight_code_and_unreachable_padding_have_no_loop() -> None:
    assert loops(listing("NOP\nEXIT\n.L_x_0:\nBRA `(.L_x_0)")) == []
