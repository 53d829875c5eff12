from __future__ import annotations

import threading

import numpy as np
import pytest
from fdql.shm.records import now_ns
from fdql.shm.slots import SlotClient, SlotError, SlotServer, init_slots, slots_bytes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from shm_blocks import SECOND, slots_block, wait_until_armed
from shm_children import answer, body, number_of


def server_of(block) -> SlotServer:
    return SlotServer(block.memory, block.bell, block.control)


def client_of(block, worker: int) -> SlotClient:
    return SlotClient(block.memory, worker, block.bell, block.control)


def ids_of(server: SlotServer) -> np.ndarray:
    return np.full(server.groups * server.workers, -1, np.int32)


def test_bytes_by_hand():
    # 2 x 2 slots: 128 + 4 * 384 = 1664, one page; 12 rows of 20 -> 64 bytes = 768, one page;
    # 12 action rows of 4 -> 16 bytes = 192
    assert slots_bytes(2, 2, 3, 20, 4) == 4096 + 4096 + 192


def test_rows_by_hand():
    """Slot id = group * workers + worker; its rows are id * envs onwards."""
    block = slots_block(2, 2, 3, 20, 4)
    server, client = server_of(block), client_of(block, 1)
    assert (client.obs_stride, client.action_stride) == (64, 16)
    assert (len(client.obs(0)), len(client.actions(0))) == (3 * 64, 3 * 16)
    client.obs(1)[0] = 42  # group 1, worker 1 -> id 3, row 9
    client.obs(0)[64] = 43  # id 1, its second row: row 4
    assert server.obs[9 * 64] == 42
    assert server.obs[4 * 64] == 43
    server.actions[9 * 16] = 5
    assert client.actions(1)[0] == 5
    assert (len(server.obs), len(server.actions)) == (12 * 64, 12 * 16)


def test_one_exchange_by_hand():
    block = slots_block(2, 2, 1, 8, 8)
    server, client = server_of(block), client_of(block, 0)
    ids = ids_of(server)
    client.submit(1)
    assert not client.wait(1, 0)
    assert server.ready() == 1
    assert server.collect(ids, 1, SECOND, 0) == 1
    assert ids[0] == 2
    server.reply(ids, 1, 77)
    assert client.wait(1, 0)
    assert client.policy_version(1) == 77
    assert server.ready() == 0


def test_collect_tells_since_when_the_oldest_waits():
    block = slots_block(2, 1, 1, 8, 8)
    server, ids = server_of(block), ids_of(server_of(block))
    assert server.oldest_ns == 0
    before = now_ns()
    client_of(block, 1).submit(0)
    between = now_ns()
    client_of(block, 0).submit(0)
    assert server.collect(ids, 2, SECOND, 0) == 2
    assert before <= server.oldest_ns <= between
    server.reply(ids, 2, 1)
    oldest = server.oldest_ns
    assert server.collect(ids, 1, 0, 0) == 0
    assert server.oldest_ns == oldest  # of the last that returned any


def test_collect_rules():
    """All that is ready comes out, ascending, whatever ended the waiting."""
    block = slots_block(3, 1, 1, 8, 8)
    server, ids = server_of(block), np.zeros(3, np.int32)
    clients = [client_of(block, w) for w in range(3)]
    assert server.collect(ids, 1, 0, 0) == 0  # time-out with nothing
    clients[2].submit(0)
    assert server.collect(ids, 2, 600 * SECOND, 0) == 1  # time-out below target
    assert server.collect(ids, 2, 0, 600 * SECOND) == 1  # dwell over
    clients[0].submit(0)
    assert server.collect(ids, 2, 600 * SECOND, 600 * SECOND) == 2  # target
    assert ids[:2].tolist() == [0, 2]
    clients[1].submit(0)
    assert server.collect(ids, 1, 600 * SECOND, 600 * SECOND) == 3  # more than the target


def test_misuse_is_refused():
    block = slots_block(2, 1, 1, 8, 8)
    server, client = server_of(block), client_of(block, 0)
    ids = ids_of(server)
    with pytest.raises(SlotError, match="no request"):
        client.wait(0, 0)
    client.submit(0)
    with pytest.raises(SlotError, match="under way"):
        client.submit(0)
    ids[:] = 0, 1
    with pytest.raises(SlotError, match="waits for no reply"):
        server.reply(ids, 2, 1)  # nothing collected yet
    assert server.collect(ids, 1, 0, 0) == 1
    ids[1] = 1
    with pytest.raises(SlotError, match="slot 1"):
        server.reply(ids, 2, 1)
    assert not client.wait(0, 0)  # and slot 0 was not replied either
    with pytest.raises(SlotError):
        server.reply(np.array([9], np.int32), 1, 1)
    with pytest.raises(IndexError):
        client.submit(1)
    with pytest.raises(IndexError):
        client_of(block, 2)
    with pytest.raises(ValueError, match="room for 1"):
        server.collect(ids[:1], 1, 0, 0)
    with pytest.raises(ValueError, match="at least 1"):
        slots_bytes(1, 0, 1, 1, 1)
    with pytest.raises(ValueError, match="too few"):
        init_slots(block.memory[:4096], 2, 1, 1, 8, 8)
    with pytest.raises(SlotError, match="init_slots"):
        SlotServer(block.memory[4096:], block.bell)


def test_late_reply_to_a_dead_worker_is_not_taken():
    block = slots_block(1, 1, 1, 8, 8)
    server, ids = server_of(block), np.zeros(1, np.int32)
    client_of(block, 0).submit(0)
    assert server.collect(ids, 1, 0, 0) == 1
    successor = client_of(block, 0)  # the first one died here
    successor.submit(0)
    server.reply(ids, 1, 1)  # answers the dead one's number
    assert not successor.wait(0, 0)
    assert server.collect(ids, 1, 0, 0) == 1
    server.reply(ids, 1, 2)
    assert successor.wait(0, 0)
    assert successor.policy_version(0) == 2


def test_new_server_sees_unanswered_requests():
    block = slots_block(2, 2, 1, 8, 8)
    client, ids = client_of(block, 1), np.zeros(4, np.int32)
    client.submit(0)
    client.submit(1)
    assert server_of(block).collect(ids, 2, 0, 0) == 2  # and died
    server = server_of(block)
    assert server.collect(ids, 2, 0, 0) == 2
    server.reply(ids, 2, 5)
    assert client.wait(0, 0)
    assert client.wait(1, 0)


class SlotsMachine(RuleBasedStateMachine):
    """Slots against dictionaries: what each (worker, group) asked, what the server took."""

    slot_ids = st.integers(0, 3)  # 2 workers x 2 groups

    def __init__(self) -> None:
        super().__init__()
        self.block = slots_block(2, 2, 1, 16, 16)
        self.clients = [client_of(self.block, w) for w in range(2)]
        self.server, self.ids = server_of(self.block), np.zeros(4, np.int32)
        self.count = 0
        self.asked: dict[int, int] = {}  # slot -> message of the living client, not replied
        self.replied: dict[int, int] = {}  # slot -> message that the living client got a reply to
        self.open: dict[int, int] = {}  # slot -> last message submitted, not replied
        self.taken: dict[int, int] = {}  # slot -> message the server collected

    @rule(slot=slot_ids)
    def submit(self, slot: int) -> None:
        client, group = self.clients[slot % 2], slot // 2
        if slot in self.asked:
            with pytest.raises(SlotError):
                client.submit(group)
            return
        self.count += 1
        client.obs(group)[:16] = body(self.count, 16)
        client.submit(group)
        self.replied.pop(slot, None)
        self.asked[slot] = self.open[slot] = self.count

    @rule(wanted=st.integers(1, 4))
    def collect(self, wanted: int) -> None:
        n = self.server.collect(self.ids, wanted, 0, 0)
        assert self.ids[:n].tolist() == sorted(self.open)
        answer(self.server, self.ids[:n])
        self.taken = {**self.taken, **self.open}

    @rule(slots=st.sets(slot_ids, max_size=4))
    def reply(self, slots: set[int]) -> None:
        ids = np.array(sorted(slots & self.taken.keys()), np.int32)
        self.server.reply(ids, len(ids), self.count)
        for slot in ids.tolist():
            message = self.taken.pop(slot)
            if self.open.get(slot) == message:
                del self.open[slot]
            if self.asked.get(slot) == message:
                self.replied[slot] = self.asked.pop(slot)

    @rule(worker=st.integers(0, 1))
    def replace_client(self, worker: int) -> None:
        self.clients[worker] = client_of(self.block, worker)
        for slot in (worker, worker + 2):
            self.asked.pop(slot, None)
            self.replied.pop(slot, None)

    @rule()
    def replace_server(self) -> None:
        self.server = server_of(self.block)
        self.taken = {}

    @invariant()
    def replies_reach_whom_they_belong(self) -> None:
        assert self.server.ready() == len(self.open)
        for slot in self.asked:
            assert not self.clients[slot % 2].wait(slot // 2, 0)
        for slot in self.replied:
            assert self.clients[slot % 2].wait(slot // 2, 0)

    @invariant()
    def action_rows_fit(self) -> None:
        for slot, message in self.replied.items():
            if slot not in self.taken:  # else the server has already written the next ones
                assert number_of(self.clients[slot % 2].actions(slot // 2)[:16]) == message + 1


SlotsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSlotsMachine = SlotsMachine.TestCase


def test_sleeping_client_and_server_wake_each_other():
    block = slots_block(1, 1, 1, 16, 16)
    server, client = server_of(block), client_of(block, 0)
    ids, got = np.zeros(1, np.int32), []

    def serve() -> None:
        for _ in range(200):
            n = server.collect(ids, 1, 0, 600 * SECOND)
            answer(server, ids[:n])
            server.reply(ids, n, 1)

    thread = threading.Thread(target=serve)
    thread.start()
    for i in range(200):
        client.obs(0)[:16] = body(i, 16)
        client.submit(0)
        assert client.wait(0, 600 * SECOND)
        got.append(number_of(client.actions(0)[:16]))
    thread.join()
    assert got == list(range(1, 201))


def test_stop_ends_waits():
    block = slots_block(1, 1, 1, 8, 8)
    server, client, result = server_of(block), client_of(block, 0), []
    ids = np.zeros(1, np.int32)
    serving = threading.Thread(
        target=lambda: result.append(server.collect(ids, 1, 0, 600 * SECOND))
    )
    serving.start()
    wait_until_armed(block)
    block.stop()
    serving.join()
    client.submit(0)
    assert result == [0]
    assert not client.wait(0, 600 * SECOND)
